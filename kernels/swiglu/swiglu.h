// h = silu(gate) · up (Shazeer, arXiv 2002.05202). Gradients are returned (=).
#pragma once

#include <utility>

#include "runtime/context.h"

namespace hone::kernels {

Tensor SwiGlu(Context& ctx, const Tensor& gate_TF, const Tensor& up_TF);
std::pair<Tensor, Tensor> SwiGluBackward(Context& ctx, const Tensor& dh_TF, const Tensor& gate_TF,
                                         const Tensor& up_TF);

}  // namespace hone::kernels
