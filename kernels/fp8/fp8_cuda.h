// CUDA form of fp8.h.
#pragma once

#include "kernels/fp8/fp8.h"

namespace hone::kernels::cuda {

template <class T>
void QuantizeTiles(Context& ctx, const Tensor& x_RC, bool transposed, const Fp8Matrix& out);
template <class T>
void QuantizeBlocks(Context& ctx, const Tensor& w_RC, bool transposed, const Fp8Matrix& out);

}  // namespace hone::kernels::cuda
