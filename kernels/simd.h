// The widest vector this build may use, for code that a compiler would not vectorise by itself.
//
// Lanes never mix, Fma is fused in each form, and Max gives its second operand where one is NaN, so
// the width changes speed and no bit.
#pragma once

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

}  // namespace hone::kernels
