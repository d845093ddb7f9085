// A paged cache of keys and values for every layer of a model (or of one stage of it).
//
// Pages of `page_size` tokens are numbered; a sequence is a list of page numbers kept by its owner
// (the inference engine). Pages are reference counted so that a group shares its prompt's pages.
// GQA keeps keys and values. MLA keeps the normalised latent and the rotated shared key ("expand"
// and "absorb" both decode from those) or, at many times the memory, the keys and values that
// "expand" makes of them: each once instead of anew at every step, with the same bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/attention.h"
#include "model/model_config.h"
#include "runtime/context.h"

namespace hone::model {

class KvCache {
 public:
  enum class Mla { kLatent, kExpanded };  // what MLA keeps; without meaning for GQA

  KvCache(Context& ctx, const ModelConfig& config, int64_t layers, int64_t pages, int64_t page_size,
          DType dtype, Mla mla = Mla::kLatent);

  int64_t page_size() const { return page_size_; }
  int64_t pages() const { return static_cast<int64_t>(references_.size()); }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  static int64_t BytesPerPage(const ModelConfig& config, int64_t layers, int64_t page_size,
                              DType dtype, Mla mla = Mla::kLatent);
  bool expanded() const { return joint_.empty(); }  // keys and values, not latents

  int32_t TakePage();                                     // refcount 1; Error when none is free
  void Share(int32_t page);                               // refcount + 1
  void Release(int32_t page);                             // refcount − 1; free at 0
  void CopyPage(Context& ctx, int32_t from, int32_t to);  // every layer
  void Clear();  // all pages free: new weights, no old keys

  // Keys and values are kept by head on the CPU, where that decodes fastest; else by token.
  kernels::KvLayout layout() const { return layout_; }
  // First and second pool of a layer: [pages, page_size, heads, dim] by token; by head as PagedKv
  // has them.
  const Tensor& first(int64_t layer) const { return first_[layer]; }    // k, or the latent c
  const Tensor& second(int64_t layer) const { return second_[layer]; }  // v, or the rotated key
  // Latents only: [pages, page_size, 1, kv_lora_rank + rope dim]; first and second are views of it.
  const Tensor& joint(int64_t layer) const { return joint_[layer]; }

  // Where the new tokens of a decode step go: page · page_size + slot of each.
  std::vector<int64_t> NewTokenRows(std::span<const int32_t> cu_seqlens,
                                    const std::vector<std::vector<int32_t>>& pages_S,
                                    std::span<const int32_t> length_S) const;
  // Writes token t of first and second ([T, heads, dim] or [T, heads · dim]) to slot row_T[t] %
  // page_size of page row_T[t] / page_size.
  void Write(Context& ctx, int64_t layer, const Tensor& first, const Tensor& second,
             std::span<const int64_t> row_T);

 private:
  int64_t page_size_;
  kernels::KvLayout layout_;
  std::vector<Tensor> first_, second_, joint_;
  std::vector<int32_t> references_, free_;
};

}  // namespace hone::model
