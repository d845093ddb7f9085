// Device code that the row-wise kernels share: exponentials, widening loads of part of a row,
// reductions over a row.
//
// A row is cut into packs of 16 bytes; pack p belongs to thread p mod kThreads of the threads that
// share the row, whether it could be read at once or not. So a result depends on the row alone: not
// on its alignment, not on the rows beside it.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/cuda/element.h"
#include "kernels/cuda/reduce.h"

namespace hone::kernels::cuda {

__device__ __forceinline__ float Fma(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double Fma(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ float Sqrt(float x) { return sqrtf(x); }
__device__ __forceinline__ double Sqrt(double x) { return sqrt(x); }
__device__ __forceinline__ float Log(float x) { return logf(x); }
__device__ __forceinline__ double Log(double x) { return log(x); }
template <class A>
__device__ __forceinline__ A Infinity() {
  return static_cast<A>(INFINITY);
}

// The bits of kernels/vec_math.h's Exp: the same steps, explained there.
__device__ __forceinline__ float Exp(float x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.72283f, kRound = 12582912.0f;
  float c = x < kLowest ? kLowest : x;
  c = c > kHighest ? kHighest : c;
  float shifted = fmaf(c, 1.44269504f, kRound);
  float n = shifted - kRound;
  float r = fmaf(n, -0.693145752f, c);
  r = fmaf(n, -1.42860677e-6f, r);
  float p = fmaf(r, 1.0f / 5040, 1.0f / 720);
  p = fmaf(p, r, 1.0f / 120);
  p = fmaf(p, r, 1.0f / 24);
  p = fmaf(p, r, 1.0f / 6);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  float y = __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
  y = x < kLowest ? 0.0f : y;
  y = x > kHighest ? Infinity<float>() : y;
  return x != x ? x : y;
}
__device__ __forceinline__ double Exp(double x) { return exp(x); }

// True when every row of every tensor begins at a multiple of 16 bytes.
template <class... Tensors>
bool RowsAligned(const Tensors&... t) {
  return ((reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 &&
           (t.rows() <= 1 || t.row_stride() * runtime::DTypeSize(t.dtype()) % 16 == 0)) &&
          ...);
}

// Reads N elements (a multiple of Pack<T>::kSize), widened. At a row's end only `count` < N are
// there, the rest become 0. `aligned`: `from` is a multiple of 16 bytes.
template <int N, class T>
__device__ __forceinline__ void LoadPacks(const T* from, int64_t count, bool aligned, Acc<T>* to) {
  constexpr int kSize = Pack<T>::kSize;
  static_assert(N % kSize == 0);
  if (aligned && count >= N) {
#pragma unroll
    for (int p = 0; p < N; p += kSize) {
      Pack<T> pack = LoadPack(from + p);
#pragma unroll
      for (int i = 0; i < kSize; ++i) to[p + i] = Load(pack.v[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = i < count ? Load(from[i]) : Acc<T>(0);
  }
}
template <int N, class T>
__device__ __forceinline__ void StorePacks(const Acc<T>* from, int64_t count, bool aligned, T* to) {
  constexpr int kSize = Pack<T>::kSize;
  static_assert(N % kSize == 0);
  if (aligned && count >= N) {
#pragma unroll
    for (int p = 0; p < N; p += kSize) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < kSize; ++i) pack.v[i] = Store<T>(from[p + i]);
      StorePack(to + p, pack);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < count) to[i] = Store<T>(from[i]);
    }
  }
}

// Calls fn(i, count) for each pack [i, i + count) of a row that belongs to `thread` of kThreads.
template <int kThreads, class T, class Fn>
__device__ __forceinline__ void ForPacks(int thread, int64_t cols, Fn fn) {
  constexpr int64_t kSize = Pack<T>::kSize;
  for (int64_t i = thread * kSize; i < cols; i += kThreads * kSize) {
    fn(i, cols - i < kSize ? cols - i : kSize);
  }
}

// Over kThreads threads that share a row: a warp each row, or the whole block one row.
template <int kThreads, class A, class Op>
__device__ __forceinline__ A RowReduce(A value, Op op, A empty) {
  if constexpr (kThreads == kWarpSize) {
    return WarpReduce(value, op);
  } else {
    return BlockReduce(value, op, empty);
  }
}
template <int kThreads, class A>
__device__ __forceinline__ A RowSum(A value) {
  return RowReduce<kThreads>(value, Sum{}, A(0));
}

}  // namespace hone::kernels::cuda
