// CPU form of adamw.h.
#pragma once

#include "kernels/adamw/adamw.h"

namespace hone::kernels::cpu {

// M: float or double, the master and gradient type. S: the moments' type, M or BF16.
// Elements [begin, end) of one tensor.
template <class M, class S>
void AdamWRange(const AdamWTensor& tensor, const AdamWStep& step, int64_t begin, int64_t end);

template <class T>
double SumOfSquares(Context& ctx, const Tensor& x);

}  // namespace hone::kernels::cpu
