// Numbers as sums of bf16 numbers, and squares of their product in the matrix unit
// (kernels/amx_gemm.h says what is multiplied).
//
// A tile register of A is 16 rows of 32 k; one of B is 16 pairs of k by 16 columns, the two k of a
// pair beside each other. A panel holds for each 32 k (a step), for each part, the tiles of its two
// halves. Four registers sum a square of 32 × 32 of C; two hold the panel of A and two that of B.
#pragma once

#include "kernels/amx_tiles.h"

#ifdef HONE_HAS_AMX
#include <type_traits>

namespace hone::kernels::amx {

inline constexpr int64_t kTile = 512;    // bf16 elements in a tile
inline constexpr int64_t kTileRow = 32;  // in its row
inline constexpr int64_t kStep = 32;     // k

template <class T>
inline constexpr int kParts = std::is_same_v<T, BF16> ? 1 : 3;
template <class T>
inline constexpr int64_t kStepSize = kParts<T> * 2 * kTile;  // bf16 elements of a step of a panel
inline constexpr int64_t kPart = 2 * kTile;                  // from part to part

// The bf16 next to each lane, in the upper half of its bits.
inline __m512 NearestBF16(__m512 x) { return __m512((Bits(x) + 0x8000) & 0xffff0000); }

// Calls store(part, x_part, y_part) for each part of x and y, of which the upper 16 bits count. The
// rest after a part is exact, and what is left for the last has no more than a bf16's bits, if it
// is not subnormal.
template <int parts, class Store>
inline __attribute__((always_inline)) void Split(__m512 x, __m512 y, Store store) {
  Unroll<parts>([&](auto part) {
    const bool last = part + 1 == parts;
    const __m512 x_part = last ? x : NearestBF16(x), y_part = last ? y : NearestBF16(y);
    store(part, Bits(x_part), Bits(y_part));
    x = x - x_part;
    y = y - y_part;
  });
}

// from[kHalf rows][kStep k] as a tile of A for each part.
template <int parts>
void SplitRows(const float* from, int64_t stride, uint16_t* to) {
  alignas(64) static constexpr uint16_t kUpper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(kUpper);
  for (int64_t row = 0; row < kHalf; ++row, from += stride, to += kTileRow) {
    Split<parts>(_mm512_loadu_ps(from), _mm512_loadu_ps(from + kHalf),
                 [&](int part, Bits x, Bits y) {
                   _mm512_store_si512(to + part * kPart,
                                      _mm512_permutex2var_epi16(__m512i(x), upper, __m512i(y)));
                 });
  }
}

// from[kStep k][kHalf columns] as a tile of B for each part.
template <int parts>
void SplitPairs(const float* from, int64_t stride, uint16_t* to) {
  for (int64_t pair = 0; pair < kHalf; ++pair, from += 2 * stride, to += kTileRow) {
    Split<parts>(_mm512_loadu_ps(from), _mm512_loadu_ps(from + stride),
                 [&](int part, Bits x, Bits y) {
                   _mm512_store_si512(to + part * kPart, __m512i(x >> 16 | (y & 0xffff0000)));
                 });
  }
}

// Packs half a panel's step: `lines` rows of A (or columns of B) and `kc` of k; what is missing is
// 0. `by_k` says whether a line's k are neighbours in memory, else its lines are.
template <class T, bool is_left>
void PackHalf(const T* from, int64_t stride, bool by_k, int64_t lines, int64_t kc, uint16_t* to) {
  alignas(64) float copy[kHalf * kStep], turned[kHalf * kStep];
  const float* at;
  if (lines == kHalf && kc == kStep && std::is_same_v<T, float>) {
    at = reinterpret_cast<const float*>(from);
  } else {
    std::memset(copy, 0, sizeof copy);
    const int64_t rows = by_k ? lines : kc, cols = by_k ? kc : lines, width = by_k ? kStep : kHalf;
    for (int64_t r = 0; r < rows; ++r) LoadRow(from + r * stride, copy + r * width, cols);
    at = copy;
    stride = width;
  }
  if (by_k != is_left) {
    const int64_t next = by_k ? kHalf : kHalf * stride, width = by_k ? kHalf : kStep;
    TransposeSquare(at, stride, turned, width);
    TransposeSquare(at + next, stride, turned + (by_k ? kHalf * width : kHalf), width);
    at = turned;
    stride = width;
  }
  if constexpr (is_left) {
    SplitRows<kParts<T>>(at, stride, to);
  } else {
    SplitPairs<kParts<T>>(at, stride, to);
  }
}

// A panel of `lines` ≤ 32 rows of A or columns of B, and k in [0, kc). Line i's k-th element is
// from[i · stride + k] when by_k, else from[k · stride + i].
template <class T, bool is_left>
void PackPanel(const T* from, int64_t stride, bool by_k, int64_t lines, int64_t kc, uint16_t* to) {
  for (int64_t k = 0; k < kc; k += kStep, to += kStepSize<T>) {
    for (int64_t half = 0; half < kPanel; half += kHalf) {
      PackHalf<T, is_left>(by_k ? from + half * stride + k : from + k * stride + half, stride, by_k,
                           std::clamp<int64_t>(lines - half, 0, kHalf), std::min(kStep, kc - k),
                           to + half / kHalf * kTile);
    }
  }
}

// The left panel leaves the first cache to the right one, which the panel below meets next.
inline void LoadLeft(const uint16_t* a, int part) {
  _tile_stream_loadd(4, a + part * kPart, 64);
  _tile_stream_loadd(5, a + part * kPart + kTile, 64);
}
inline void LoadRight(const uint16_t* b, int part) {
  _tile_loadd(6, b + part * kPart, 64);
  _tile_loadd(7, b + part * kPart + kTile, 64);
}
inline void Multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// c[32, 32] (+)= a · b over `steps` steps; the parts in an order that loads few tiles twice.
template <class T>
void MultiplyPanels(int64_t steps, const uint16_t* a, const uint16_t* b, float* c, int64_t c_stride,
                    bool load) {
  const int64_t bytes = c_stride * 4;
  float* below = c + kHalf * c_stride;
  if (load) {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + kHalf, bytes);
    _tile_loadd(2, below, bytes);
    _tile_loadd(3, below + kHalf, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, a += kStepSize<T>, b += kStepSize<T>) {
    LoadLeft(a, 0);
    if constexpr (kParts<T> == 3) {
      LoadRight(b, 2);
      Multiply();
      LoadRight(b, 1);
      Multiply();
    }
    LoadRight(b, 0);
    Multiply();
    if constexpr (kParts<T> == 3) {
      LoadLeft(a, 2);
      Multiply();
      LoadLeft(a, 1);
      Multiply();
      LoadRight(b, 1);
      Multiply();
    }
  }
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + kHalf, bytes);
  _tile_stored(2, below, bytes);
  _tile_stored(3, below + kHalf, bytes);
}

// The same for a square of which only rows × cols exist.
template <class T>
void MultiplySquare(int64_t steps, const uint16_t* a, const uint16_t* b, int64_t rows, int64_t cols,
                    float* c, int64_t c_stride, bool load) {
  if (rows >= kPanel && cols >= kPanel) return MultiplyPanels<T>(steps, a, b, c, c_stride, load);
  rows = std::min(rows, kPanel);
  cols = std::min(cols, kPanel);
  alignas(64) float copy[kPanel * kPanel] = {};
  for (int64_t r = 0; load && r < rows; ++r) std::copy_n(c + r * c_stride, cols, copy + r * kPanel);
  MultiplyPanels<T>(steps, a, b, copy, kPanel, load);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(copy + r * kPanel, cols, c + r * c_stride);
}

template <class T>
struct Bf16Parts {
  using Element = T;

  static int64_t PanelSize(int64_t kc) { return (kc + kStep - 1) / kStep * kStepSize<T> * 2; }

  template <bool is_left>
  static void Pack(const T* from, int64_t stride, bool by_k, int64_t lines, int64_t kc,
                   uint8_t* to) {
    PackPanel<T, is_left>(from, stride, by_k, lines, kc, reinterpret_cast<uint16_t*>(to));
  }
  static void Multiply(int64_t kc, const uint8_t* a, const uint8_t* b, int64_t rows, int64_t cols,
                       float* c, int64_t c_stride, bool load) {
    MultiplySquare<T>((kc + kStep - 1) / kStep, reinterpret_cast<const uint16_t*>(a),
                      reinterpret_cast<const uint16_t*>(b), rows, cols, c, c_stride, load);
  }
};

}  // namespace hone::kernels::amx

#endif
