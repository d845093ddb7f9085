// The emulator's form of kernels/cuda/intrinsics.h.
#pragma once

#include <cuda_runtime.h>

namespace hone::kernels::cuda {

template <class T>
T* DynamicShared() {
  return static_cast<T*>(cuda_emulation::DynamicSharedMemory());
}

}  // namespace hone::kernels::cuda
