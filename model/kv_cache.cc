#include "model/kv_cache.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/embedding/embedding.h"
#include "runtime/error.h"

namespace hone::model {

namespace {

// Elements of one token: of the first pool, of the second, over all heads.
struct TokenWidth {
  int64_t heads, first, second;
};
TokenWidth WidthOf(const ModelConfig& config, KvCache::Mla mla) {
  if (config.is_mla() && mla == KvCache::Mla::kLatent) {
    return {1, config.kv_lora_rank, config.qk_rope_head_dim};
  }
  if (config.is_mla()) {
    return {config.num_attention_heads, config.qk_nope_head_dim + config.qk_rope_head_dim,
            config.v_head_dim};
  }
  return {config.num_key_value_heads, config.head_dim, config.head_dim};
}

Tensor TokenRows(const Tensor& pool) {
  const Shape& s = pool.shape();
  return s[2] == 1 ? pool.Reshape({s[0] * s[1], s[3]}) : pool.Reshape({s[0] * s[1], s[2] * s[3]});
}

}  // namespace

KvCache::KvCache(Context& ctx, const ModelConfig& config, int64_t layers, int64_t pages,
                 int64_t page_size, DType dtype, Mla mla)
    : page_size_(page_size),
      layout_(ctx.device().is_cpu() && !(config.is_mla() && mla == Mla::kLatent)
                  ? kernels::KvLayout::kByHead
                  : kernels::KvLayout::kByToken),
      references_(pages, 0) {
  Check<ConfigError>(pages > 0 && page_size > 0,
                     "[kv_cache] {} pages of {} tokens; both must be > 0", pages, page_size);
  Check<ConfigError>(pages <= std::numeric_limits<int32_t>::max() / page_size,
                     "[kv_cache] {} pages of {} tokens: more than 2^31 tokens", pages, page_size);
  TokenWidth width = WidthOf(config, mla);
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (config.is_mla() && mla == Mla::kLatent) {
      Tensor joint = ctx.Zeros({pages, page_size, 1, width.first + width.second}, dtype,
                               MemoryCategory::kKvCache);
      first_.push_back(joint.Columns(0, width.first));
      second_.push_back(joint.Columns(width.first, width.first + width.second));
      joint_.push_back(joint);
    } else {
      const bool by_head = layout_ == kernels::KvLayout::kByHead;
      auto pool = [&](Shape shape) {
        return ctx.Zeros(std::move(shape), dtype, MemoryCategory::kKvCache);
      };
      first_.push_back(pool(by_head ? Shape{pages, width.heads, width.first, page_size}
                                    : Shape{pages, page_size, width.heads, width.first}));
      second_.push_back(pool(by_head ? Shape{pages, width.heads, page_size, width.second}
                                     : Shape{pages, page_size, width.heads, width.second}));
    }
  }
  Clear();
}

int64_t KvCache::BytesPerPage(const ModelConfig& config, int64_t layers, int64_t page_size,
                              DType dtype, Mla mla) {
  TokenWidth width = WidthOf(config, mla);
  return layers * page_size * width.heads * (width.first + width.second) *
         runtime::DTypeSize(dtype);
}

int32_t KvCache::TakePage() {
  Check<Error>(!free_.empty(), "[kv_cache] none of {} pages is free", pages());
  int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void KvCache::Share(int32_t page) {
  Check<Error>(page >= 0 && page < pages() && references_[page] > 0,
               "[kv_cache] page {} of {} is not in use and cannot be shared", page, pages());
  ++references_[page];
}

void KvCache::Release(int32_t page) {
  Check<Error>(page >= 0 && page < pages() && references_[page] > 0,
               "[kv_cache] page {} of {} is not in use and cannot be released", page, pages());
  if (--references_[page] == 0) free_.push_back(page);
}

void KvCache::CopyPage(Context& ctx, int32_t from, int32_t to) {
  CheckShape(from >= 0 && from < pages() && to >= 0 && to < pages(),
             "[kv_cache] copy of page {} to {}; there are {}", from, to, pages());
  auto copy = [&](const Tensor& pool) {
    CopyTo(pool.Slice(from, from + 1), pool.Slice(to, to + 1), &ctx.stream());
  };
  for (size_t layer = 0; layer < first_.size(); ++layer) {
    copy(first_[layer]);
    copy(second_[layer]);
  }
}

void KvCache::Clear() {
  std::fill(references_.begin(), references_.end(), 0);
  free_.resize(references_.size());
  for (size_t i = 0; i < free_.size(); ++i) free_[i] = static_cast<int32_t>(free_.size() - 1 - i);
}

std::vector<int64_t> KvCache::NewTokenRows(std::span<const int32_t> cu_seqlens,
                                           const std::vector<std::vector<int32_t>>& pages_S,
                                           std::span<const int32_t> length_S) const {
  std::vector<int64_t> row_T;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    int64_t length = length_S[s], fresh = cu_seqlens[s + 1] - cu_seqlens[s];
    CheckShape(fresh <= length && length <= static_cast<int64_t>(pages_S[s].size()) * page_size_,
               "[kv_cache] sequence {} has {} new of {} tokens in {} pages of {}", s, fresh, length,
               pages_S[s].size(), page_size_);
    for (int64_t i = length - fresh; i < length; ++i) {
      row_T.push_back(pages_S[s][i / page_size_] * page_size_ + i % page_size_);
    }
  }
  return row_T;
}

void KvCache::Write(Context& ctx, int64_t layer, const Tensor& first, const Tensor& second,
                    std::span<const int64_t> row_T) {
  if (layout_ == kernels::KvLayout::kByHead) {
    const Shape &k = first_[layer].shape(), &v = second_[layer].shape();
    const int64_t tokens = static_cast<int64_t>(row_T.size());
    return kernels::WriteByHead(ctx, first.Reshape({tokens, k[1], k[2]}),
                                second.Reshape({tokens, v[1], v[3]}), row_T, first_[layer],
                                second_[layer]);
  }
  const std::vector<int32_t> narrow_T(row_T.begin(), row_T.end());
  auto write = [&](const Tensor& source, const Tensor& pool) {
    Tensor rows = TokenRows(pool);
    kernels::SetRows(ctx, rows, narrow_T,
                     source.Reshape({static_cast<int64_t>(row_T.size()), rows.cols()}));
  };
  write(first, first_[layer]);
  write(second, second_[layer]);
}

}  // namespace hone::model
