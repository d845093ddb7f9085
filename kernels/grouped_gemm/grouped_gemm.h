// Linear layers of E experts over rows sorted by expert.
//
// R rows, K input dim, N output dim; `offset_E` has E + 1 host entries: rows [offset[e],
// offset[e+1]) belong to expert e. Empty groups are allowed. dtypes, batch invariance and gradient
// convention as in linear.h: a row's result does not depend on what else is in its group.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

Tensor GroupedLinear(Context& ctx, const Tensor& x_RK, const Tensor& w_ENK,
                     const std::vector<int64_t>& offset_E);
Tensor GroupedLinearInputGradient(Context& ctx, const Tensor& dy_RN, const Tensor& w_ENK,
                                  const std::vector<int64_t>& offset_E);
void GroupedLinearWeightGradient(Context& ctx, const Tensor& dy_RN, const Tensor& x_RK,
                                 const Tensor& dw_ENK, const std::vector<int64_t>& offset_E);

}  // namespace hone::kernels
