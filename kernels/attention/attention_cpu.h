#pragma once

#include <span>

#include "kernels/attention/attention.h"

namespace hone::kernels::cpu {

// A is float or double: bf16 callers widen first. `lse_TH` may be undefined.
template <class A>
void Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV,
               const Tensor& lse_TH);
template <class A>
void AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients);
// T is the dtype of the pages; queries and outputs are in Acc<T>.
template <class T>
void PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV);

}  // namespace hone::kernels::cpu
