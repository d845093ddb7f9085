// The innermost loops of gemm.cc: a tile of C in registers, walked down k.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "kernels/gemm.h"
#include "kernels/simd.h"

namespace hone::kernels {

inline constexpr int64_t kLineBytes = 64;     // of the cache
inline constexpr int64_t kColumnsAhead = 12;  // steps of k; a column may be a page from the next
inline constexpr int kTileRows = kSimdRegisters == 32 ? 14 : 6;
template <class A>
inline constexpr int64_t kTileCols = 2 * Simd<A>::kWidth;

// With few rows, a tile is wider: the chains of so few are too short to keep the multipliers busy.
inline constexpr int kFewRows = kSimdRegisters == 32 ? 6 : 2;
template <class A>
inline constexpr int64_t kWideTileCols = 2 * kTileCols<A>;

// c[R, W vectors] (+)= a · b over kc steps of k. Row r of a lies kPackedStride after row r − 1; or,
// when kByColumns, its rows are neighbours and step k is `a_step` elements after step k − 1. Step k
// of b is `b_step` elements after step k − 1. The tile below, which comes next, is fetched
// meanwhile: its rows are too far apart for the processor to foresee. So is, at each step of k, a
// later column of a when kByColumns, else one line of the cache of what begins at `ahead`.
template <class A, int R, int W, bool kByColumns>
void MicroKernel(int64_t kc, const A* a, int64_t a_step, const A* b, int64_t b_step, A* c,
                 int64_t c_stride, bool load, const char* ahead) {
  using S = Simd<A>;
  constexpr int64_t kRow = kByColumns ? 1 : kPackedStride;
  typename S::Vector sum[R][W];
  Unroll<R>([&](auto r) {
    Unroll<W>(
        [&](auto w) { sum[r][w] = load ? S::Load(c + r * c_stride + w * S::kWidth) : S::Zero(); });
  });
  if constexpr (R == kTileRows) {
    Unroll<R>([&](auto r) {
      Unroll<W>(
          [&](auto w) { __builtin_prefetch(c + (kTileRows + r) * c_stride + w * S::kWidth, 1); });
    });
  }
  for (int64_t k = 0; k < kc; ++k, a += kByColumns ? a_step : 1, b += b_step, ahead += kLineBytes) {
    if constexpr (kByColumns) {
      __builtin_prefetch(a + kColumnsAhead * a_step);
    } else {
      __builtin_prefetch(ahead, 0, 2);
    }
    typename S::Vector row[W];
    Unroll<W>([&](auto w) { row[w] = S::Load(b + w * S::kWidth); });
    Unroll<R>([&](auto r) {
      auto x = S::Broadcast(a[r * kRow]);
      Unroll<W>([&](auto w) { sum[r][w] = S::Fma(x, row[w], sum[r][w]); });
    });
  }
  Unroll<R>([&](auto r) {
    Unroll<W>([&](auto w) { S::Store(c + r * c_stride + w * S::kWidth, sum[r][w]); });
  });
}

template <class A>
using MicroKernelFn = void (*)(int64_t, const A*, int64_t, const A*, int64_t, A*, int64_t, bool,
                               const char*);

// For 1 to `rows` rows.
template <class A, int rows, int W, bool kByColumns>
constexpr auto KernelsByRows() {
  return []<int... r>(std::integer_sequence<int, r...>) {
    return std::array<MicroKernelFn<A>, rows>{MicroKernel<A, r + 1, W, kByColumns>...};
  }
  (std::make_integer_sequence<int, rows>{});
}
template <class A>
MicroKernelFn<A> KernelFor(int64_t rows, bool two_vectors, bool by_columns) {
  static constexpr std::array<MicroKernelFn<A>, kTileRows> kTable[2][2] = {
      {KernelsByRows<A, kTileRows, 1, false>(), KernelsByRows<A, kTileRows, 1, true>()},
      {KernelsByRows<A, kTileRows, 2, false>(), KernelsByRows<A, kTileRows, 2, true>()}};
  return kTable[two_vectors][by_columns][rows - 1];
}

// A tile of kWideTileCols columns, rows ≤ kFewRows.
template <class A>
void MultiplyWideTile(int64_t rows, int64_t kc, const A* a, const A* b, int64_t b_step, A* c,
                      int64_t c_stride, bool load, const char* ahead) {
  static constexpr auto kTable = KernelsByRows<A, kFewRows, 4, false>();
  kTable[rows - 1](kc, a, 0, b, b_step, c, c_stride, load, ahead);
}

// One tile of C, rows ≤ kTileRows, cols ≤ kTileCols; `a` by columns, `a_step` apart, unless that is
// 0. A tile narrower than its vectors goes through a copy.
template <class A>
void MultiplyTile(int64_t rows, int64_t cols, int64_t kc, const A* a, int64_t a_step, const A* b,
                  int64_t b_step, A* c, int64_t c_stride, bool load, const char* ahead) {
  constexpr int64_t kWidth = Simd<A>::kWidth, kCols = kTileCols<A>;
  auto kernel = KernelFor<A>(rows, cols > kWidth, a_step != 0);
  if (cols == kCols || cols == kWidth) {
    return kernel(kc, a, a_step, b, b_step, c, c_stride, load, ahead);
  }
  A copy[kTileRows * kCols];
  for (int64_t r = 0; load && r < rows; ++r) {
    std::copy_n(c + r * c_stride, cols, copy + r * kCols);
    std::fill(copy + r * kCols + cols, copy + (r + 1) * kCols, A(0));
  }
  kernel(kc, a, a_step, b, b_step, copy, kCols, load, ahead);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(copy + r * kCols, cols, c + r * c_stride);
}

}  // namespace hone::kernels
