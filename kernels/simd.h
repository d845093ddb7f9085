// The widest vector this build may use, for code that a compiler would not vectorise by itself.
//
// Lanes never mix, Fma is fused in each form, and Max gives its second operand where one is NaN, so
// the width changes speed and no bit.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace hone::kernels {

template <class A>
struct Simd;

#if defined(__AVX512F__)
inline constexpr int kSimdRegisters = 32;
template <>
struct Simd<float> {
  using Vector = __m512;
  static constexpr int kWidth = 16;
  static Vector Zero() { return _mm512_setzero_ps(); }
  static Vector Load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector Broadcast(float x) { return _mm512_set1_ps(x); }
  static void Store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static Vector Fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector Add(Vector a, Vector b) { return a + b; }
  static float First(Vector v) { return v[0]; }
  static Vector Max(Vector a, Vector b) { return a > b ? a : b; }
};
template <>
struct Simd<double> {
  using Vector = __m512d;
  static constexpr int kWidth = 8;
  static Vector Zero() { return _mm512_setzero_pd(); }
  static Vector Load(const double* p) { return _mm512_loadu_pd(p); }
  static Vector Broadcast(double x) { return _mm512_set1_pd(x); }
  static void Store(double* p, Vector v) { _mm512_storeu_pd(p, v); }
  static Vector Fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_pd(a, b, c); }
  static Vector Add(Vector a, Vector b) { return a + b; }
  static double First(Vector v) { return v[0]; }
  static Vector Max(Vector a, Vector b) { return a > b ? a : b; }
};
#elif defined(__AVX2__) && defined(__FMA__)
inline constexpr int kSimdRegisters = 16;
template <>
struct Simd<float> {
  using Vector = __m256;
  static constexpr int kWidth = 8;
  static Vector Zero() { return _mm256_setzero_ps(); }
  static Vector Load(const float* p) { return _mm256_loadu_ps(p); }
  static Vector Broadcast(float x) { return _mm256_set1_ps(x); }
  static void Store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static Vector Fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector Add(Vector a, Vector b) { return a + b; }
  static float First(Vector v) { return v[0]; }
  static Vector Max(Vector a, Vector b) { return a > b ? a : b; }
};
template <>
struct Simd<double> {
  using Vector = __m256d;
  static constexpr int kWidth = 4;
  static Vector Zero() { return _mm256_setzero_pd(); }
  static Vector Load(const double* p) { return _mm256_loadu_pd(p); }
  static Vector Broadcast(double x) { return _mm256_set1_pd(x); }
  static void Store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
  static Vector Fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
  static Vector Add(Vector a, Vector b) { return a + b; }
  static double First(Vector v) { return v[0]; }
  static Vector Max(Vector a, Vector b) { return a > b ? a : b; }
};
#else
// No vectors the compiler is told of: one lane, fused by the library where the machine cannot.
inline constexpr int kSimdRegisters = 16;
template <class A>
struct Simd {
  using Vector = A;
  static constexpr int kWidth = 1;
  static A Zero() { return 0; }
  static A Load(const A* p) { return *p; }
  static A Broadcast(A x) { return x; }
  static void Store(A* p, A v) { *p = v; }
  static A Fma(A a, A b, A c) {
    if constexpr (sizeof(A) == 4) return __builtin_fmaf(a, b, c);
    return __builtin_fma(a, b, c);
  }
  static A Add(A a, A b) { return a + b; }
  static A First(A v) { return v; }
  static A Max(A a, A b) { return a > b ? a : b; }
};
#endif

// Calls fn(integral_constant<int, i>) for i in [0, n), unrolled.
template <int n, class Fn>
inline __attribute__((always_inline)) void Unroll(Fn&& fn) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (fn(std::integral_constant<int, i>{}), ...);
  }
  (std::make_integer_sequence<int, n>{});
}

// Lane i of the result is lane i + by of v, cyclically.
template <class A, int by>
inline __attribute__((always_inline)) auto RotateLanes(typename Simd<A>::Vector v) {
  constexpr int kWidth = Simd<A>::kWidth;
  return [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    return __builtin_shufflevector(v, v, ((i + by) % kWidth)...);
  }
  (std::make_integer_sequence<int, kWidth>{});
}

// Transposes a square of kWidth × kWidth. Each stage interleaves row i with row i + kWidth / 2,
// which rotates the bits of the element's index by one; log2(kWidth) of them exchange row and
// column.
template <class A>
inline __attribute__((always_inline)) void Transpose(typename Simd<A>::Vector* row) {
  constexpr int kWidth = Simd<A>::kWidth;
  if constexpr (kWidth > 1) {
    using Vector = typename Simd<A>::Vector;
    auto interleave = [&]<int... i>(std::integer_sequence<int, i...>) {
      Vector next[kWidth];
      Unroll<kWidth / 2>([&](auto r) {
        next[2 * r] =
            __builtin_shufflevector(row[r], row[r + kWidth / 2], (i / 2 + i % 2 * kWidth)...);
        next[2 * r + 1] = __builtin_shufflevector(row[r], row[r + kWidth / 2],
                                                  (kWidth / 2 + i / 2 + i % 2 * kWidth)...);
      });
      Unroll<kWidth>([&](auto r) { row[r] = next[r]; });
    };
    for (int stage = 1; stage < kWidth; stage *= 2) {
      interleave(std::make_integer_sequence<int, kWidth>{});
    }
  }
}

// column[j] lane r = from[r · stride + j], of a square of kWidth × kWidth in memory.
template <class A>
inline __attribute__((always_inline)) void LoadTransposed(const A* from, int64_t stride,
                                                          typename Simd<A>::Vector* column) {
  constexpr int kWidth = Simd<A>::kWidth;
  Unroll<kWidth>([&](auto r) { column[r] = Simd<A>::Load(from + r * stride); });
  Transpose<A>(column);
}
#if defined(__AVX512F__)
// Half the work is done by loads: vector b of row i takes elements [4b, 4b + 4) of rows i, i + 4,
// i + 8, i + 12 into its four parts, inside which four such vectors are then transposed.
template <>
inline __attribute__((always_inline)) void LoadTransposed<float>(const float* from, int64_t stride,
                                                                 __m512* column) {
  Unroll<4>([&](auto b) {
    __m512 part[4];
    Unroll<4>([&](auto i) {
      const float* at = from + i * stride + 4 * b;
      __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(at));
      v = _mm512_insertf32x4(v, _mm_loadu_ps(at + 4 * stride), 1);
      v = _mm512_insertf32x4(v, _mm_loadu_ps(at + 8 * stride), 2);
      part[i] = _mm512_insertf32x4(v, _mm_loadu_ps(at + 12 * stride), 3);
    });
    // Of each part: the first two elements of x and y in turn, the last two, both halves.
    auto low = [](__m512 x, __m512 y) {
      return __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13,
                                     29);
    };
    auto high = [](__m512 x, __m512 y) {
      return __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15,
                                     31);
    };
    auto first = [](__m512 x, __m512 y) {
      return __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28,
                                     29);
    };
    auto second = [](__m512 x, __m512 y) {
      return __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30,
                                     31);
    };
    __m512 low01 = low(part[0], part[1]), low23 = low(part[2], part[3]);
    __m512 high01 = high(part[0], part[1]), high23 = high(part[2], part[3]);
    column[4 * b] = first(low01, low23);
    column[4 * b + 1] = second(low01, low23);
    column[4 * b + 2] = first(high01, high23);
    column[4 * b + 3] = second(high01, high23);
  });
}
#endif

}  // namespace hone::kernels
