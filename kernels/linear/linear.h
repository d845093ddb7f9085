// y = x · wᵀ + bias, and its two gradients.
//
// T rows (tokens), K input dim, N output dim. x, w, bias, y share one dtype (f32, bf16, f64);
// weight gradients are f32 (f64 when the rest is f64). Batch invariance: a row of y has the same
// bits whatever T is, however many threads run and wherever the row stands. On the CPU each element
// is one fused-multiply-add chain over k in ascending order that starts from the bias; a weight
// gradient is one chain over the tokens that starts from what is there, so splitting a batch into
// microbatches of consecutive tokens changes no bit of it. Numerics::kFast promises neither
// (runtime/context.h). Gradient convention: input gradients are
// returned (=), weight and bias gradients are added (+=).
#pragma once

#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

Tensor Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK, const Tensor* bias_N = nullptr);
// dx = dy · w
Tensor LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK);
// dw += dyᵀ · x ; dbias += Σ_t dy (dbias may be null)
void LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                          const Tensor& dw_NK, const Tensor* dbias_N = nullptr);

// Several layers of one x together, which on the CPU share what is done to it. Batch invariant, a
// layer's y and dw have the bits that it gives alone.
struct LinearWeight {
  Tensor w_NK;
  const Tensor* bias_N = nullptr;
};
std::vector<Tensor> LinearEach(Context& ctx, const Tensor& x_TK,
                               const std::vector<LinearWeight>& layers);
// dx = Σ dy · w over the layers: of what each gives alone, in their order; with Numerics::kFast on
// the CPU it is rounded once.
struct LinearOutput {
  Tensor dy_TN, w_NK;
};
Tensor LinearInputGradientSum(Context& ctx, const std::vector<LinearOutput>& layers);
struct LinearGradient {
  Tensor dy_TN, dw_NK;
  const Tensor* dbias_N = nullptr;
};
void LinearWeightGradientEach(Context& ctx, const Tensor& x_TK,
                              const std::vector<LinearGradient>& layers);

}  // namespace hone::kernels
