// Small element-wise operations. In-place forms change their first tensor.
#pragma once

#include "runtime/context.h"

namespace hone::kernels {

void AddInPlace(Context& ctx, const Tensor& x, const Tensor& y);  // x += y (dtypes may differ)
void ScaleInPlace(Context& ctx, const Tensor& x, double factor);  // x *= factor
void MultiplyRowsInPlace(Context& ctx, const Tensor& x_TD, const Tensor& factor_T);
Tensor Add(Context& ctx, const Tensor& x, const Tensor& y);
Tensor Cast(Context& ctx, const Tensor& x, DType dtype);  // x itself when it is that already

}  // namespace hone::kernels
