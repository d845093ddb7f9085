// h = silu(gate) · up (Shazeer, arXiv 2002.05202).
#pragma once

#include "runtime/context.h"

namespace hone::kernels {

Tensor SwiGlu(Context& ctx, const Tensor& gate_TF, const Tensor& up_TF);
// In place, for backward needs h again and then none of its operands: dh becomes h, with SwiGlu's
// bits, gate and up become their gradients.
void SwiGluBackward(Context& ctx, const Tensor& dh_TF, const Tensor& gate_TF, const Tensor& up_TF);

}  // namespace hone::kernels
