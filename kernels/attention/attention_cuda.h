// CUDA form of attention.h: kernels of our own, in which the training forward, chunked prefill and
// decode visit keys in one order. Instantiated for float, double and BF16.
#pragma once

#include <span>

#include "kernels/attention/attention.h"

namespace hone::kernels::cuda {

template <class T>
void Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const AttentionResult& result);
template <class T>
void PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV);
// Writes the gradients (=); sums are made in the accumulation type.
template <class T>
void AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients);

}  // namespace hone::kernels::cuda
