// Sums and maxima over a warp and over a block, always in the same order, so that the result
// depends on nothing but the values and the number of threads. Every thread gets the result.
#pragma once

#include "kernels/cuda/launch.h"

namespace hone::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x % kWarpSize); }
__device__ __forceinline__ int Warp() { return static_cast<int>(threadIdx.x / kWarpSize); }

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN wins, so that it is not lost on the way.
struct Max {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

// A butterfly: after step s, lanes that differ in the low bits up to s agree. `op` must be
// commutative; then all lanes end with the same bits.
template <class T, class Op>
__device__ __forceinline__ T WarpReduce(T value, Op op) {
  for (int step = 1; step < kWarpSize; step *= 2) {
    value = op(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  return value;
}
template <class T>
__device__ __forceinline__ T WarpSum(T value) {
  return WarpReduce(value, Sum{});
}
template <class T>
__device__ __forceinline__ T WarpMax(T value) {
  return WarpReduce(value, Max{});
}

// Warps first, then the warps' results; `empty` is what an absent warp counts as. For blocks of one
// dim. Holds a barrier before and behind the shared array, so calls may follow each other.
template <class T, class Op>
__device__ __forceinline__ T BlockReduce(T value, Op op, T empty) {
  __shared__ T warp_result[kWarpSize];
  value = WarpReduce(value, op);
  __syncthreads();
  if (Lane() == 0) warp_result[Warp()] = value;
  __syncthreads();
  int warps = static_cast<int>(blockDim.x) / kWarpSize;
  return WarpReduce(Lane() < warps ? warp_result[Lane()] : empty, op);
}
template <class T>
__device__ __forceinline__ T BlockSum(T value) {
  return BlockReduce(value, Sum{}, T(0));
}

}  // namespace hone::kernels::cuda
