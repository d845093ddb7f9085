// CUDA form of linear.h. Instantiated for float, double and BF16.
#pragma once

#include "runtime/context.h"

namespace hone::kernels::cuda {

template <class T>
void Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK, const Tensor* bias_N,
            const Tensor& y_TN);
template <class T>
void LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK,
                         const Tensor& dx_TK);
template <class T>
void LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                          const Tensor& dw_NK, const Tensor* dbias_N);

}  // namespace hone::kernels::cuda
