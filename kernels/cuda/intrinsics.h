// What kernels use of the device that is not C++. Included through kernels/cuda/launch.h; the
// emulator has a header of the same name and contents of its own.
#pragma once

#include <cuda_runtime.h>

namespace hone::kernels::cuda {

// The block's dynamic shared memory (Blocks::shared_bytes), 16-byte aligned.
template <class T>
__device__ __forceinline__ T* DynamicShared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
}

}  // namespace hone::kernels::cuda
