// CPU form of swiglu.h. Instantiated for float, double and BF16.
#pragma once

#include "runtime/context.h"

namespace hone::kernels::cpu {

template <class T>
void SwiGlu(Context& ctx, const Tensor& gate_TF, const Tensor& up_TF, const Tensor& h_TF);
template <class T>
void SwiGluBackward(Context& ctx, const Tensor& dh_TF, const Tensor& gate_TF, const Tensor& up_TF);

}  // namespace hone::kernels::cpu
