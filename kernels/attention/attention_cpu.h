#pragma once

#include <span>

#include "kernels/attention/attention.h"

namespace hone::kernels::cpu {

// Of the tile on the diagonal the earlier queries see no more than its first half.
inline constexpr int64_t kHalfTile = kKeyTile / 2;
// `keys` of a tile's keys in whole halves, and fn(u) for each of these.
inline int64_t InHalves(int64_t keys) { return keys <= kHalfTile ? kHalfTile : kKeyTile; }
template <class Fn>
void ForKeys(int64_t in_halves, Fn fn) {
  for (int64_t half = 0; half < in_halves; half += kHalfTile) {
    for (int64_t u = half; u < half + kHalfTile; ++u) fn(u);
  }
}

template <class T>
void Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const AttentionResult& result);
template <class T>
void WriteByHead(Context& ctx, const Tensor& k_TGC, const Tensor& v_TGV,
                 std::span<const int64_t> row_T, const Tensor& k_PGCS, const Tensor& v_PGSV);
template <class T>
void PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV);
// A is float or double: a bf16 caller widens first.
template <class A>
void AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients);

}  // namespace hone::kernels::cpu
