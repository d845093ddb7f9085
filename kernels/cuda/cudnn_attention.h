// cuDNN's fused attention behind the functions of attention.h: the fast mode (Numerics::kFast) of
// bf16 on a GPU. Its results depend on the shape of the batch; its backward is the deterministic
// one.
//
// Each returns false, having done nothing, when cuDNN has no such kernel for these dims, dtype and
// GPU; then our own kernel is the one to call. The first time that happens it is said on stderr.
#pragma once

#include <span>

#include "kernels/attention/attention.h"

namespace hone::kernels::cudnn {

bool Attention(Context& ctx, const Tensor& q_THC, const Tensor& k_TGC, const Tensor& v_TGV,
               std::span<const int32_t> cu_seqlens, double scale, const AttentionResult& result);
// Writes the gradients (=). `saved` may come from our own kernel: lse_TH means the same.
bool AttentionBackward(Context& ctx, const Tensor& dout_THV, const Tensor& q_THC,
                       const Tensor& k_TGC, const Tensor& v_TGV, const AttentionResult& saved,
                       std::span<const int32_t> cu_seqlens, double scale,
                       const AttentionGradients& gradients);
// Decode only: one query for each sequence.
bool PagedAttention(Context& ctx, const Tensor& q_THC, const PagedKv& kv,
                    std::span<const int32_t> cu_seqlens, double scale, const Tensor& out_THV);

}  // namespace hone::kernels::cudnn
