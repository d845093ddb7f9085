// AdamW (Loshchilov & Hutter, arXiv 1711.05101, alg. 2; decay decoupled and scaled by lr, as
// PyTorch). Where √v + ε is 0, which needs an ε of 0 in the master's type, there is no update.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

struct AdamWStep {
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;           // counts from 1: bias correction
  double gradient_scale = 1;  // clip factor, applied to the gradient as it is read
};
// One tensor's worth; all of the same size, contiguous.
struct AdamWTensor {
  Tensor master;               // f32 or f64, updated
  Tensor gradient;             // f32 or f64; scaled, at most 1e19 in magnitude: its square is kept
  Tensor exp_avg, exp_avg_sq;  // f32, f64 or bf16, updated
  Tensor value;  // compute dtype, written from master; may be undefined or the same as master
  bool decay = true;
};
void AdamW(Context& ctx, const std::vector<AdamWTensor>& tensors, const AdamWStep& step);

// Σ x², in double, in a fixed order that depends on the size only.
double SumOfSquares(Context& ctx, const Tensor& x);
// Of each tensor, all of one dtype; waits for the device once. The bits of SumOfSquares.
std::vector<double> SumsOfSquares(Context& ctx, const std::vector<Tensor>& tensors);

}  // namespace hone::kernels
