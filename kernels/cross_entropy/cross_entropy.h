// Σ_t weight_t · (−log softmax(x · wᵀ)[target_t]) together with its gradients in one pass: since
// the weights are known beforehand, each block of logits is made once, turned into its gradient and
// used at once. T×V is never held.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels {

struct CrossEntropyResult {
  Tensor logp_T;  // log-probability of each target, f32 or f64; 0 where there is none
  Tensor dx_TD;   // gradient of the weighted sum; undefined when gradients are not asked for
};
// `dw_VD` (+=) may be null: then no gradients are computed. Tokens with weight 0 still get their
// logp. Tokens without a target cost no GEMM, those without a weight none of the backward's.
CrossEntropyResult CrossEntropy(Context& ctx, const Tensor& x_TD, const Tensor& w_VD,
                                std::span<const int32_t> target_T, std::span<const float> weight_T,
                                const Tensor* dw_VD);

}  // namespace hone::kernels
