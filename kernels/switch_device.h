// The switch of op.cc between its CPU and its CUDA form. HONE_CUDA_KERNELS is 1 where the CUDA
// forms are linked (by nvcc or by the emulator of tests/cuda_emulation) and 0 elsewhere, for
// kernels only.
#pragma once

#include "runtime/context.h"

namespace hone::kernels {

inline constexpr bool kCudaKernels = HONE_CUDA_KERNELS;

// Calls `on_cpu` or `on_cuda`, by the context's device. Without CUDA kernels no context can be on
// CUDA, `on_cuda` is never instantiated, and what it calls need not exist.
template <class OnCpu, class OnCuda>
void SwitchDevice(const Context& ctx, OnCpu&& on_cpu, OnCuda&& on_cuda) {
  if constexpr (kCudaKernels) {
    if (!ctx.device().is_cpu()) return on_cuda();
  }
  on_cpu();
}

}  // namespace hone::kernels
