// Operands of the matrix unit in fixed point, and squares of their product (kernels/amx_gemm.h says
// what is multiplied).
//
// A tile register holds 16 rows of 64 digits of 8 bits. One of A is 16 rows by 64 k; one of B is 16
// groups of four k by 16 columns. Which four k make a group is free as long as A and B agree: here
// k, k + 16, k + 32 and k + 48, so that one step packs both: of four vectors of numbers it makes
// three of digits, lane by lane. A panel begins with the units of its 32 lines.
#pragma once

#include "kernels/amx_tiles.h"

#ifdef HONE_HAS_AMX
#include <limits>

namespace hone::kernels::amx {

struct FixedPoint {
  using Element = float;

  static int64_t PanelSize(int64_t kc) { return kUnitBytes + (kc + kStep - 1) / kStep * kStepSize; }
  template <bool is_left>
  static void Pack(const float* from, int64_t stride, bool by_k, int64_t lines, int64_t kc,
                   uint8_t* to);
  static void Multiply(int64_t kc, const uint8_t* a, const uint8_t* b, int64_t rows, int64_t cols,
                       float* c, int64_t c_stride, bool load);

 private:
  static constexpr int64_t kStep = 64;    // k
  static constexpr int kDigits = 3;       // of a number, the highest first
  static constexpr int64_t kTile = 1024;  // bytes, as all below
  static constexpr int64_t kTileRow = 64;
  static constexpr int64_t kHalfSize = kDigits * kTile;
  static constexpr int64_t kStepSize = 2 * kHalfSize;
  static constexpr int64_t kUnitBytes = kPanel * sizeof(float);

  using Ints = int32_t __attribute__((vector_size(64)));

  static Ints Greatest(const float* from, int64_t stride, bool by_k, int64_t lines, int64_t kc);
  static __m512 ChooseUnits(Ints greatest, float* unit);
  static Bits Digits(__m512 x, __m512 scale);
  static void StoreDigits(Bits u0, Bits u1, Bits u2, Bits u3, uint8_t* to);
  template <bool is_left>
  static void PackHalf(const float* from, int64_t stride, bool by_k, int64_t lines, int64_t kc,
                       __m512 scale, uint8_t* to);
  static void MultiplySteps(int64_t kc, const uint8_t* a, const uint8_t* b);
  template <bool load>
  static void Combine(const int32_t* sums, const float* row_unit, __m512 col_unit, int64_t rows,
                      __mmask16 cols, float* c, int64_t c_stride);
};

// The bits of each line's greatest |x|; those of NaN and infinity are greater than all others.
inline FixedPoint::Ints FixedPoint::Greatest(const float* from, int64_t stride, bool by_k,
                                             int64_t lines, int64_t kc) {
  auto meet = [](__m512 so_far, __m512 x) {
    const Ints a = Ints(so_far), b = Ints(x) & 0x7fffffff;
    return __m512(a > b ? a : b);
  };
  if (!by_k) {
    const __mmask16 mask = (1u << lines) - 1;
    __m512 greatest = {};
    for (int64_t k = 0; k < kc; ++k, from += stride) {
      greatest = meet(greatest, _mm512_maskz_loadu_ps(mask, from));
    }
    return Ints(greatest);
  }
  __m512 line[kHalf] = {};
  for (int64_t i = 0; i < lines; ++i, from += stride) {
    __m512 greatest = {};
    int64_t k = 0;
    for (; k + kHalf <= kc; k += kHalf) greatest = meet(greatest, _mm512_loadu_ps(from + k));
    if (k < kc) {
      const __mmask16 mask = (1u << (kc - k)) - 1;
      greatest = meet(greatest, _mm512_maskz_loadu_ps(mask, from + k));
    }
    line[i] = greatest;
  }
  Transpose<float>(line);
  for (int64_t i = 1; i < kHalf; ++i) line[0] = meet(line[0], line[i]);
  return Ints(line[0]);
}

// Gives the factor that makes each line's greatest number the largest of three digits, and keeps
// what undoes it, apart from the digits' own weight of 2^16. A line with NaN or infinity has the
// unit NaN.
inline __m512 FixedPoint::ChooseUnits(Ints greatest, float* unit) {
  const __m512 largest = _mm512_set1_ps(0x7f7f7e);  // less one, for the factor is rounded
  const __m512 limit = _mm512_set1_ps(0x1p127f), weight = _mm512_set1_ps(0x1p16f);
  const __m512 nan = _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN());
  const __m512 factor = largest / __m512(greatest), scale = factor < limit ? factor : limit;
  _mm512_store_ps(unit, greatest < 0x7f800000 ? weight / scale : nan);
  return scale;
}

// The bytes of the sum are the digits d of round(x · scale) = d2 · 2^16 + d1 · 2^8 + d0, each plus
// 128.
inline Bits FixedPoint::Digits(__m512 x, __m512 scale) {
  return Bits(_mm512_maskz_cvtps_epi32(0xffff, x * scale)) + 0x808080;
}

// Lane by lane, the four numbers' digits of one weight beside each other.
inline void FixedPoint::StoreDigits(Bits u0, Bits u1, Bits u2, Bits u3, uint8_t* to) {
  auto bytes = [](Bits even, Bits odd) {
    return Bits(_mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, __m512i(even), __m512i(odd)));
  };
  auto words = [](Bits even, Bits odd) {
    return Bits(_mm512_mask_blend_epi16(0xaaaaaaaa, __m512i(even), __m512i(odd)));
  };
  const Bits even01 = bytes(u0, u1 << 8), odd01 = bytes(u0 >> 8, u1);
  const Bits even23 = bytes(u2, u3 << 8), odd23 = bytes(u2 >> 8, u3);
  constexpr uint32_t kOffsets = 0x80808080;
  _mm512_store_si512(to, __m512i(words(even01 >> 16, even23) ^ kOffsets));
  _mm512_store_si512(to + kTile, __m512i(words(odd01, odd23 << 16) ^ kOffsets));
  _mm512_store_si512(to + 2 * kTile, __m512i(words(even01, even23 << 16) ^ kOffsets));
}

// A step of half a panel: `lines` ≤ 16 by `kc` ≤ 64; what is missing is 0.
template <bool is_left>
void FixedPoint::PackHalf(const float* from, int64_t stride, bool by_k, int64_t lines, int64_t kc,
                          __m512 scale, uint8_t* to) {
  alignas(64) float copy[kHalf * kStep], turned[kHalf * kStep];
  if (lines < kHalf || kc < kStep) {
    std::memset(copy, 0, sizeof copy);
    const int64_t rows = by_k ? lines : kc, cols = by_k ? kc : lines, width = by_k ? kStep : kHalf;
    for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, cols, copy + r * width);
    from = copy;
    stride = width;
  }
  if (by_k != is_left) {
    const int64_t width = by_k ? kHalf : kStep;
    for (int64_t k = 0; k < kStep; k += kHalf) {
      TransposeSquare(by_k ? from + k : from + k * stride, stride,
                      by_k ? turned + k * width : turned + k, width);
    }
    from = turned;
    stride = width;
  }
  // A row of a tile is a line of A, or 16 columns of B; its four vectors are kHalf k apart.
  const int64_t apart = is_left ? kHalf : kHalf * stride;
  alignas(64) float line_scale[kHalf];
  _mm512_store_ps(line_scale, scale);
  for (int64_t row = 0; row < kHalf; ++row, from += stride, to += kTileRow) {
    if constexpr (is_left) scale = _mm512_set1_ps(line_scale[row]);
    auto digits = [&](int64_t i) { return Digits(_mm512_loadu_ps(from + i * apart), scale); };
    StoreDigits(digits(0), digits(1), digits(2), digits(3), to);
  }
}

template <bool is_left>
void FixedPoint::Pack(const float* from, int64_t stride, bool by_k, int64_t lines, int64_t kc,
                      uint8_t* to) {
  auto* unit = reinterpret_cast<float*>(to);
  to += kUnitBytes;
  for (int64_t half = 0; half < kPanel; half += kHalf, unit += kHalf, to += kHalfSize) {
    const int64_t count = std::clamp<int64_t>(lines - half, 0, kHalf);
    const float* first = by_k ? from + half * stride : from + half;
    const __m512 scale = ChooseUnits(Greatest(first, stride, by_k, count, kc), unit);
    for (int64_t k = 0; k < kc; k += kStep) {
      PackHalf<is_left>(by_k ? first + k : first + k * stride, stride, by_k, count,
                        std::min(kStep, kc - k), scale, to + k / kStep * kStepSize);
    }
  }
}

// 32 rows by 16 columns. Registers 0, 1 and 2 sum the upper rows' products of digits by the sum of
// their places, 3, 4 and 5 the lower rows'; 6 holds digits of A, 7 of B. The order loads few tiles
// twice and adds to no register twice in four products.
inline void FixedPoint::MultiplySteps(int64_t kc, const uint8_t* a, const uint8_t* b) {
  auto load_upper = [&](int digit) { _tile_loadd(6, a + digit * kTile, kTileRow); };
  auto load_lower = [&](int digit) { _tile_loadd(6, a + kHalfSize + digit * kTile, kTileRow); };
  auto load_right = [&](int digit) { _tile_loadd(7, b + digit * kTile, kTileRow); };
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t k = 0; k < kc; k += kStep, a += kStepSize, b += kStepSize) {
    load_right(2);
    load_upper(0);
    _tile_dpbssd(2, 6, 7);
    load_lower(0);
    _tile_dpbssd(5, 6, 7);
    load_right(1);
    _tile_dpbssd(4, 6, 7);
    load_upper(0);
    _tile_dpbssd(1, 6, 7);
    load_upper(1);
    _tile_dpbssd(2, 6, 7);
    load_lower(1);
    _tile_dpbssd(5, 6, 7);
    load_right(0);
    _tile_dpbssd(4, 6, 7);
    load_upper(1);
    _tile_dpbssd(1, 6, 7);
    load_upper(2);
    _tile_dpbssd(2, 6, 7);
    load_lower(2);
    _tile_dpbssd(5, 6, 7);
    load_lower(0);
    _tile_dpbssd(3, 6, 7);
    load_upper(0);
    _tile_dpbssd(0, 6, 7);
  }
}

// c[rows, cols], both ≤ 16, (+)= the three sums, each with its weight, in units of row and column.
// A sum of 512 k or less is exact in f32, or its last bits are below those of the first.
template <bool load>
void FixedPoint::Combine(const int32_t* sums, const float* row_unit, __m512 col_unit, int64_t rows,
                         __mmask16 cols, float* c, int64_t c_stride) {
  const __m512 second = _mm512_set1_ps(0x1p-8f), third = _mm512_set1_ps(0x1p-16f);
#pragma GCC unroll 8
  for (int64_t r = 0; r < rows; ++r, c += c_stride) {
    auto sum = [&](int64_t places) {
      const int32_t* at = sums + (places * kHalf + r) * kHalf;
      return __builtin_convertvector(Ints(_mm512_load_si512(at)), __m512);
    };
    const __m512 total = _mm512_fmadd_ps(sum(2), third, _mm512_fmadd_ps(sum(1), second, sum(0)));
    const __m512 unit = _mm512_set1_ps(row_unit[r]) * col_unit;
    if constexpr (load) {
      _mm512_mask_storeu_ps(c, cols, _mm512_fmadd_ps(total, unit, _mm512_maskz_loadu_ps(cols, c)));
    } else {
      _mm512_mask_storeu_ps(c, cols, total * unit);
    }
  }
}

inline void FixedPoint::Multiply(int64_t kc, const uint8_t* a, const uint8_t* b, int64_t rows,
                                 int64_t cols, float* c, int64_t c_stride, bool load) {
  constexpr int64_t kSums = kHalf * kHalf;
  const auto *row_unit = reinterpret_cast<const float*>(a),
             *col_unit = reinterpret_cast<const float*>(b);
  alignas(64) int32_t sums[2 * kDigits * kSums];
  for (int64_t n = 0; n < std::min(cols, kPanel); n += kHalf) {
    MultiplySteps(kc, a + kUnitBytes, b + kUnitBytes + n / kHalf * kHalfSize);
    _tile_stored(0, sums, kTileRow);
    _tile_stored(1, sums + kSums, kTileRow);
    _tile_stored(2, sums + 2 * kSums, kTileRow);
    _tile_stored(3, sums + 3 * kSums, kTileRow);
    _tile_stored(4, sums + 4 * kSums, kTileRow);
    _tile_stored(5, sums + 5 * kSums, kTileRow);
    const __mmask16 mask = (1u << std::min(kHalf, cols - n)) - 1;
    const __m512 unit = _mm512_loadu_ps(col_unit + n);
    for (int64_t m = 0; m < std::min(rows, kPanel); m += kHalf) {
      (load ? Combine<true> : Combine<false>)(sums + m / kHalf * kDigits * kSums, row_unit + m,
                                              unit, std::min(kHalf, rows - m), mask,
                                              c + m * c_stride + n, c_stride);
    }
  }
}

}  // namespace hone::kernels::amx

#endif
