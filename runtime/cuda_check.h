// Turns CUDA's status codes into DeviceErrors. Included only by what includes CUDA's own headers.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

namespace hone::runtime {

// "[rms_norm] launch on cuda:0 failed: cudaErrorIllegalAddress (an illegal memory access …)".
// Kernels run later than the call that launched them, so the operation named is the one that
// noticed.
[[noreturn]] void ThrowCudaError(cudaError_t status, std::string_view op, std::string_view call,
                                 int device);

inline void CheckCuda(cudaError_t status, std::string_view op, std::string_view call, int device) {
  if (status != cudaSuccess) [[unlikely]]
    ThrowCudaError(status, op, call, device);
}

}  // namespace hone::runtime
