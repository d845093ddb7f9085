// How our own CUDA kernels are launched. Included by `*_cuda.cu` and `*_cuda.cc` only.
//
// One source, two compilers. A `*_cuda.cu` is compiled by nvcc for a GPU, and as plain C++ by the
// host compiler with tests/cuda_emulation first on the include path, where a shim of the CUDA
// runtime runs its blocks on the CPU. So that both work, kernels keep to these rules:
//   - Launch with `Launch` below, never with `<<<>>>`.
//   - Dynamic shared memory comes from `DynamicShared<T>()`, never from `extern __shared__`. Static
//     `__shared__` arrays of numbers are fine (not of BF16, which has a constructor).
//   - A block has a multiple of 32 threads. Every thread of a block reaches every `__syncthreads`,
//     and every lane of its mask every warp intrinsic: no thread returns before them.
//   - No block waits for another block: they may run one after the other in any order.
//   - PTX, tensor-core and asynchronous-copy instructions live behind functions of
//     kernels/cuda/intrinsics.h, which the emulator replaces; everything else is C++ and the CUDA
//     functions that the emulator's cuda_runtime.h declares (shuffles, votes, atomics, fences,
//     math).
//   - Results never depend on the number of rows, on the grid or on the order of blocks: reductions
//     have a fixed order (kernels/cuda/reduce.h), floating-point atomics are not used, and products
//     and sums are fused only by an explicit `fma` (nvcc runs with -fmad=false).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "kernels/cuda/intrinsics.h"
#include "runtime/context.h"
#include "runtime/cuda_check.h"
#include "runtime/step_recorder.h"

namespace hone::kernels::cuda {

using runtime::CheckCuda;

// The shape of a launch. A grid without blocks is not launched.
struct Blocks {
  dim3 grid;
  dim3 threads;
  int64_t shared_bytes = 0;  // of DynamicShared
};

inline constexpr int kWarpSize = 32;

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads for a block that walks along `elements`: whole warps, no more than `most`.
inline int64_t ThreadsFor(int64_t elements, int64_t most = 256) {
  int64_t warps = CeilDiv(elements < 1 ? 1 : elements, kWarpSize);
  int64_t limit = most / kWarpSize;
  return (warps < limit ? warps : limit) * kWarpSize;
}

// Lets a block of `kernel` have all the dynamic shared memory that there is on `device`. Always as
// much: between this call and the launch another thread may launch the kernel with less.
inline void AllowSharedMemory(const void* kernel, std::string_view op, int device) {
  int of_block = 0;
  CheckCuda(cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), op,
            "cudaDeviceGetAttribute", device);
  cudaFuncAttributes of_kernel = {};
  CheckCuda(cudaFuncGetAttributes(&of_kernel, kernel), op, "cudaFuncGetAttributes", device);
  CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 of_block - static_cast<int>(of_kernel.sharedSizeBytes)),
            op, "cudaFuncSetAttribute", device);
}

// Runs `kernel` on ctx's stream. Asynchronous. `op` begins the message of an error.
template <class... Params, class... Args>
void Launch(Context& ctx, std::string_view op, void (*kernel)(Params...), const Blocks& blocks,
            Args&&... args) {
  const dim3 grid = blocks.grid;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const int device = ctx.device().index;
  auto* recorder = runtime::StepRecorder::Of(ctx.stream());
  if (recorder && !recorder->Issue(kernel, grid, blocks.threads, blocks.shared_bytes,
                                   static_cast<Params>(args)...)) {
    return;
  }
  CheckCuda(cudaSetDevice(device), op, "cudaSetDevice", device);
  constexpr int64_t kSharedWithoutAsking = 48 * 1024;
  if (blocks.shared_bytes > kSharedWithoutAsking) {
    AllowSharedMemory(reinterpret_cast<const void*>(kernel), op, device);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = blocks.threads;
  config.dynamicSmemBytes = static_cast<size_t>(blocks.shared_bytes);
  config.stream = static_cast<cudaStream_t>(ctx.stream().handle());
  CheckCuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...),
            op, "launch", device);
}

// A copy on the device of values that the host has, ordered on ctx's stream. `values` may be
// changed as soon as this returns.
template <class T>
Tensor Upload(Context& ctx, std::span<const T> values) {
  Tensor copy = ctx.Empty({static_cast<int64_t>(values.size())}, DTypeOf<T>::value);
  runtime::CopyBytes(copy.raw(), ctx.device(), values.data(), Device::Cpu(), copy.bytes(),
                     &ctx.stream());
  return copy;
}

}  // namespace hone::kernels::cuda
