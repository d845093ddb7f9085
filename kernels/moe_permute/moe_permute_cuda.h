// CUDA form of moe_permute.h. Instantiated for float, double and BF16.
#pragma once

#include "kernels/moe_permute/moe_permute.h"

namespace hone::kernels::cuda {

template <class T>
void Permute(Context& ctx, const Tensor& x_TD, const Permutation& permutation,
             const Tensor& rows_RD);
template <class T>
void Unpermute(Context& ctx, const Tensor& rows_RD, const Tensor& weight_TK,
               const Permutation& permutation, const Tensor& y_TD);
template <class T>
void UnpermuteBackward(Context& ctx, const Tensor& dy_TD, const Tensor& rows_RD,
                       const Tensor& weight_TK, const Permutation& permutation,
                       const UnpermuteGradients& gradients);

}  // namespace hone::kernels::cuda
