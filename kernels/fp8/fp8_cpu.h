// CPU form of fp8.h: the same bytes and scales as the GPU's, and products as an oracle.
#pragma once

#include "kernels/fp8/fp8.h"

namespace hone::kernels::cpu {

template <class T>
void QuantizeTiles(Context& ctx, const Tensor& x_RC, bool transposed, const Fp8Matrix& out);
template <class T>
void QuantizeBlocks(Context& ctx, const Tensor& w_RC, bool transposed, const Fp8Matrix& out);
template <class T>
void Fp8Multiply(Context& ctx, const Fp8Matrix& a_MK, const Fp8Matrix& b_NK, const Tensor& out_MN,
                 bool accumulate);

}  // namespace hone::kernels::cpu
