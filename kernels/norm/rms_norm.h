// RMSNorm (Zhang & Sennrich, arXiv 1910.07467, eq. 4): y = x / sqrt(mean(x²) + eps) · w, along the
// last dim; every leading dim is a row. Statistics in f32 (f64 for f64). Gradient convention: dx is
// returned (=); dw is added (+=), f32 or f64.
#pragma once

#include "runtime/context.h"

namespace hone::kernels {

Tensor RmsNorm(Context& ctx, const Tensor& x_RD, const Tensor& w_D, double eps);
// The same of x += more, in one pass where the device has one.
Tensor RmsNormOfSum(Context& ctx, const Tensor& x_RD, const Tensor& more_RD, const Tensor& w_D,
                    double eps);
// With `more`, dx + more.
Tensor RmsNormBackward(Context& ctx, const Tensor& dy_RD, const Tensor& x_RD, const Tensor& w_D,
                       const Tensor& dw_D, double eps, const Tensor* more_RD = nullptr);

}  // namespace hone::kernels
