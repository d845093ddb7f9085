// CPU form of rms_norm.h. Instantiated for float, double and BF16.
#pragma once

#include "runtime/context.h"

namespace hone::kernels::cpu {

// `more` may be null.
template <class T>
void RmsNorm(Context& ctx, const Tensor& x_RD, const Tensor* more_RD, const Tensor& w_D, double eps,
             const Tensor& y_RD);
template <class T>
void RmsNormBackward(Context& ctx, const Tensor& dy_RD, const Tensor& x_RD, const Tensor& w_D,
                     const Tensor& dw_D, double eps, const Tensor* more_RD, const Tensor& dx_RD);

}  // namespace hone::kernels::cpu
