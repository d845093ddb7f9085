#include "model/kv_cache.h"

#include <gtest/gtest.h>

#include "layer_testing.h"

namespace hone::model {
namespace {

ModelConfig Grouped() {
  ModelConfig config;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 3;
  return config;
}

ModelConfig Latent() {
  ModelConfig config;
  config.num_attention_heads = 4;
  config.kv_lora_rank = 5;
  config.qk_rope_head_dim = 2;
  config.qk_nope_head_dim = 3;
  config.v_head_dim = 7;
  return config;
}

TEST(KvCache, PagesAreCountedAndReused) {
  Context ctx;
  KvCache cache(ctx, Grouped(), 1, 3, 4, DType::kF32);
  EXPECT_EQ(cache.free_pages(), 3);
  int32_t a = cache.TakePage(), b = cache.TakePage(), c = cache.TakePage();
  EXPECT_NE(a, b);
  EXPECT_NE(b, c);
  EXPECT_NE(a, c);
  EXPECT_THROW(cache.TakePage(), Error);
  cache.Share(b);
  cache.Release(b);
  EXPECT_EQ(cache.free_pages(), 0) << "a shared page was freed while still in use";
  cache.Release(b);
  EXPECT_EQ(cache.free_pages(), 1);
  EXPECT_EQ(cache.TakePage(), b);
  cache.Clear();
  EXPECT_EQ(cache.free_pages(), 3);
  EXPECT_THROW(cache.Release(a), Error);
  EXPECT_THROW(cache.Share(7), Error);
}

TEST(KvCache, BytesAreThoseAllocated) {
  for (const ModelConfig& config : {Grouped(), Latent()}) {
    for (KvCache::Mla mla : {KvCache::Mla::kLatent, KvCache::Mla::kExpanded}) {
      Context ctx;
      KvCache cache(ctx, config, 3, 5, 4, DType::kBF16, mla);
      int64_t live = ctx.allocator()->Usage().live[static_cast<int>(MemoryCategory::kKvCache)];
      EXPECT_EQ(live, 5 * KvCache::BytesPerPage(config, 3, 4, DType::kBF16, mla));
    }
  }
  EXPECT_EQ(KvCache::BytesPerPage(Grouped(), 3, 4, DType::kBF16), 3 * 4 * 2 * (3 + 3) * 2);
  EXPECT_EQ(KvCache::BytesPerPage(Latent(), 3, 4, DType::kF32), 3 * 4 * (5 + 2) * 4);
  EXPECT_EQ(KvCache::BytesPerPage(Latent(), 3, 4, DType::kF32, KvCache::Mla::kExpanded),
            3 * 4 * 4 * (5 + 7) * 4);
}

TEST(KvCache, NewTokensGoBehindTheOldOnes) {
  Context ctx;
  KvCache cache(ctx, Grouped(), 1, 10, 4, DType::kF32);
  std::vector<int32_t> cu_seqlens = {0, 3, 4}, length_S = {6, 9};
  std::vector<std::vector<int32_t>> pages_S = {{7, 2}, {0, 1, 5}};
  EXPECT_EQ(cache.NewTokenRows(cu_seqlens, pages_S, length_S),
            (std::vector<int64_t>{7 * 4 + 3, 2 * 4 + 0, 2 * 4 + 1, 5 * 4 + 0}));
  length_S[0] = 9;  // nine tokens do not fit in two pages
  EXPECT_THROW(cache.NewTokenRows(cu_seqlens, pages_S, length_S), ShapeError);
}

// Every element of both pools, by page, slot, head and dim, is what was written; the rest stays
// zero.
void CheckWrite(const ModelConfig& config, int64_t heads, int64_t first_dim, int64_t second_dim,
                KvCache::Mla mla = KvCache::Mla::kLatent) {
  Context ctx;
  KvCache cache(ctx, config, 2, 4, 4, DType::kF32, mla);
  std::vector<int64_t> row_T = {9, 10, 3};
  Tensor first = RandomTensor(ctx, {3, heads, first_dim}, DType::kF32, 1);
  Tensor second = RandomTensor(ctx, {3, heads, second_dim}, DType::kF32, 2);
  cache.Write(ctx, 1, first, second, row_T);
  const bool by_head = cache.layout() == kernels::KvLayout::kByHead;
  EXPECT_EQ(by_head, cache.expanded());
  // Where element (page, slot, head, i) lies, of keys and of values.
  auto check = [&](const Tensor& pool, const Tensor& source, int64_t dim, bool keys) {
    std::vector<double> want(4 * 4 * heads * dim), values = ToDoubles(source);
    for (size_t t = 0; t < row_T.size(); ++t) {
      int64_t page = row_T[t] / 4, slot = row_T[t] % 4;
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < dim; ++i) {
          int64_t at = ((page * 4 + slot) * heads + h) * dim + i;
          if (by_head) at = (page * heads + h) * 4 * dim + (keys ? i * 4 + slot : slot * dim + i);
          want[at] = values[(t * heads + h) * dim + i];
        }
      }
    }
    EXPECT_EQ(ToDoubles(pool), want);
  };
  check(cache.first(1), first, first_dim, true);
  check(cache.second(1), second, second_dim, false);
  std::vector<double> other = ToDoubles(cache.first(0));
  EXPECT_EQ(other, std::vector<double>(other.size(), 0.0)) << "another layer was written";

  cache.CopyPage(ctx, 2, 1);
  EXPECT_EQ(ToDoubles(cache.first(1).Slice(1, 2)), ToDoubles(cache.first(1).Slice(2, 3)));
  EXPECT_EQ(ToDoubles(cache.second(1).Slice(1, 2)), ToDoubles(cache.second(1).Slice(2, 3)));
  EXPECT_NE(ToDoubles(cache.second(1).Slice(1, 2)), ToDoubles(cache.second(1).Slice(0, 1)));
}
TEST(KvCache, WritesGroupedHeads) { CheckWrite(Grouped(), 2, 3, 3); }
TEST(KvCache, WritesLatents) { CheckWrite(Latent(), 1, 5, 2); }
TEST(KvCache, WritesExpandedHeads) { CheckWrite(Latent(), 4, 5, 7, KvCache::Mla::kExpanded); }

}  // namespace
}  // namespace hone::model
