// Row helpers whose bits do not depend on the instruction set, on alignment, or on whether the
// compiler vectorised a loop.
//
// Exp is branch-free and built from explicit fused multiply-adds, so a loop over it vectorises and
// each element has the bits of the scalar call. Reductions use kLanes partial results, element i
// going to lane i mod kLanes, folded by one fixed tree; bf16 rows are read as f32.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/simd.h"
#include "runtime/dtype.h"

namespace hone::kernels {

inline float Fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double Fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

// e^x to 1 ulp or so. Results below the smallest normal number are 0; NaN stays NaN.
// x = n ln2 + r with n an integer and |r| ≤ ln2 / 2; e^r by its Taylor polynomial of degree 7.
inline float Exp(float x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.72283f;
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  float c = x < kLowest ? kLowest : x;
  c = c > kHighest ? kHighest : c;
  float shifted = Fma(c, 1.44269504f, kRound);
  float n = shifted - kRound;
  float r = Fma(n, -0.693145752f, c);
  r = Fma(n, -1.42860677e-6f, r);
  float p = Fma(r, 1.0f / 5040, 1.0f / 720);
  p = Fma(p, r, 1.0f / 120);
  p = Fma(p, r, 1.0f / 24);
  p = Fma(p, r, 1.0f / 6);
  p = Fma(p, r, 0.5f);
  p = Fma(p, r, 1.0f);
  p = Fma(p, r, 1.0f);
  uint32_t exponent = std::bit_cast<uint32_t>(shifted) << 23;
  float y = std::bit_cast<float>(std::bit_cast<uint32_t>(p) + exponent);
  y = x < kLowest ? 0.0f : y;
  y = x > kHighest ? std::numeric_limits<float>::infinity() : y;
  return x != x ? x : y;
}
inline double Exp(double x) { return std::exp(x); }

template <class T>
inline Acc<T> Load(T x) {
  return static_cast<Acc<T>>(x);
}
template <class T, class A>
inline T Store(A x) {
  return T(static_cast<Acc<T>>(x));
}
template <class T>
inline void LoadRow(const T* from, Acc<T>* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = Load(from[i]);
}
template <class T>
inline void StoreRow(const Acc<T>* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = Store<T>(from[i]);
}

inline constexpr int kLanes = 16;

// The kLanes partial results of a reduction, in vectors.
template <class A>
struct Lanes {
  using S = Simd<A>;
  static constexpr int kVectors = kLanes / S::kWidth;
  typename S::Vector part[kVectors];

  explicit Lanes(A value) {
    Unroll<kVectors>([&](auto v) { part[v] = S::Broadcast(value); });
  }
  // part = fn(offset, part) for each vector.
  template <class Fn>
  void Update(Fn fn) {
    Unroll<kVectors>([&](auto v) { part[v] = fn(v * S::kWidth, part[v]); });
  }
  // lane i = fn(i, lane i) for i in [0, n).
  template <class Fn>
  void UpdateFirst(int64_t n, Fn fn) {
    if (n <= 0) return;
    A lane[kLanes];
    Unroll<kVectors>([&](auto v) { S::Store(lane + v * S::kWidth, part[v]); });
    for (int64_t i = 0; i < n; ++i) lane[i] = fn(i, lane[i]);
    Unroll<kVectors>([&](auto v) { part[v] = S::Load(lane + v * S::kWidth); });
  }
  // Folds lane i + h into lane i for h = 8, 4, 2, 1; `op` takes vectors.
  template <class Op>
  A Fold(Op op) {
    FoldVectors<kVectors / 2>(op);
    return FoldWithin<S::kWidth / 2>(part[0], op);
  }

 private:
  template <int half, class Op>
  void FoldVectors(Op op) {
    if constexpr (half > 0) {
      Unroll<half>([&](auto v) { part[v] = op(part[v], part[v + half]); });
      FoldVectors<half / 2>(op);
    }
  }
  template <int half, class Op>
  static A FoldWithin(typename S::Vector v, Op op) {
    if constexpr (half > 0) {
      return FoldWithin<half / 2>(op(v, RotateLanes<A, half>(v)), op);
    } else {
      return S::First(v);
    }
  }
};

// kWidth consecutive elements, widened.
template <class T>
inline auto LoadVector(const T* from) {
  using S = Simd<Acc<T>>;
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return S::Load(from);
  } else {
    Acc<T> wide[S::kWidth];
    LoadRow(from, wide, S::kWidth);
    return S::Load(wide);
  }
}

template <class T>
inline Acc<T> SumLanes(const T* x, int64_t n) {
  using A = Acc<T>;
  Lanes<A> sum(0);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    sum.Update([&](int at, auto part) { return Simd<A>::Add(part, LoadVector(x + i + at)); });
  }
  sum.UpdateFirst(n - i, [&](int64_t l, A lane) { return lane + Load(x[i + l]); });
  return sum.Fold(Simd<A>::Add);
}

// Σ term(i) for i in [0, n); `term` is called once an index, in blocks that a compiler can
// vectorise.
template <class A, class Term>
inline A SumOver(int64_t n, Term term) {
  constexpr int kBlock = 4 * kLanes;
  A block[kBlock];
  Lanes<A> sum(0);
  for (int64_t i = 0; i < n; i += kBlock) {
    int64_t count = std::min<int64_t>(kBlock, n - i), j = 0;
    if (count == kBlock) {
      for (int u = 0; u < kBlock; ++u) block[u] = term(i + u);
    } else {
      for (int64_t u = 0; u < count; ++u) block[u] = term(i + u);
    }
    for (; j + kLanes <= count; j += kLanes) {
      sum.Update([&](int at, auto part) { return Simd<A>::Add(part, LoadVector(block + j + at)); });
    }
    sum.UpdateFirst(count - j, [&](int64_t l, A lane) { return lane + block[j + l]; });
  }
  return sum.Fold(Simd<A>::Add);
}

// Σ x[i] y[i], fused.
template <class T, class U>
inline Acc<T> Dot(const T* x, const U* y, int64_t n) {
  using A = Acc<T>;
  Lanes<A> sum(0);
  int64_t i = 0;
  if constexpr (std::is_same_v<A, Acc<U>>) {
    for (; i + kLanes <= n; i += kLanes) {
      sum.Update([&](int at, auto part) {
        return Simd<A>::Fma(LoadVector(x + i + at), LoadVector(y + i + at), part);
      });
    }
  }
  for (; i < n; i += kLanes) {
    sum.UpdateFirst(std::min<int64_t>(kLanes, n - i), [&](int64_t l, A lane) {
      return Fma(Load(x[i + l]), A(Load(y[i + l])), lane);
    });
  }
  return sum.Fold(Simd<A>::Add);
}

// The greatest element; -inf when n = 0. NaN is skipped.
template <class T>
inline Acc<T> MaxLanes(const T* x, int64_t n) {
  using A = Acc<T>;
  Lanes<A> max(-std::numeric_limits<A>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    max.Update([&](int at, auto part) { return Simd<A>::Max(LoadVector(x + i + at), part); });
  }
  max.UpdateFirst(n - i, [&](int64_t l, A lane) { return std::max(lane, A(Load(x[i + l]))); });
  return max.Fold(Simd<A>::Max);
}

}  // namespace hone::kernels
