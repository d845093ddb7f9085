#pragma once

#include <vector>

#include "kernels/linear/linear.h"

namespace hone::kernels::cpu {

template <class T>
void LinearEach(Context& ctx, const Tensor& x_TK, const std::vector<LinearWeight>& layers,
                const std::vector<Tensor>& y_TN);
template <class T>
void LinearInputGradientSum(Context& ctx, const std::vector<LinearOutput>& layers,
                            const Tensor& dx_TK);
template <class T>
void LinearWeightGradientEach(Context& ctx, const Tensor& x_TK,
                              const std::vector<LinearGradient>& layers);

}  // namespace hone::kernels::cpu
