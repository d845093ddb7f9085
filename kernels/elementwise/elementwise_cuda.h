// CUDA form of elementwise.h. Instantiated for float, double and BF16.
#pragma once

#include "runtime/context.h"

namespace hone::kernels::cuda {

template <class T, class U>
void AddInPlace(Context& ctx, const Tensor& x, const Tensor& y);
template <class T>
void ScaleInPlace(Context& ctx, const Tensor& x, double factor);
template <class T, class U>
void MultiplyRowsInPlace(Context& ctx, const Tensor& x_TD, const Tensor& factor_T);
template <class T>
void Add(Context& ctx, const Tensor& x, const Tensor& y, const Tensor& sum);
template <class To, class From>
void Cast(Context& ctx, const Tensor& from, const Tensor& to);

}  // namespace hone::kernels::cuda
