// f32 to E4M3 by the GPU's own instruction. The emulator has a header of the same name.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace hone::kernels::cuda {

// The bits of kernels/fp8/e4m3.h.
__device__ __forceinline__ uint8_t ToE4M3(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

}  // namespace hone::kernels::cuda
