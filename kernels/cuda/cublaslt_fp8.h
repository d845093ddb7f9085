// Block-scaled products in fp8 on the device, by cuBLASLt (cublaslt_fp8_cuda.cc). The emulator has
// loops of its own.
#pragma once

#include "kernels/fp8/fp8.h"

namespace hone::kernels::cuda {

// As kernels::Fp8Multiply, whose checks have been made. Asynchronous. DeviceError where the GPU has
// no such product: it is Hopper's.
void MultiplyFp8(Context& ctx, const Fp8Matrix& a_MK, const Fp8Matrix& b_NK, const Tensor& out_MN,
                 bool accumulate);

}  // namespace hone::kernels::cuda
