// Reductions along a row in one fixed order.
//
// Element i of a row goes to lane i mod kLanes; the lanes are joined by a fixed tree. So the bits of a
// result depend on the row alone: not on alignment, threads, or which rows stand beside it.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/dtype.h"

namespace hone::kernels {

inline constexpr int kLanes = 32;

template <class T>
inline Acc<T> Widen(T v) {
  return static_cast<Acc<T>>(v);
}
template <class T>
inline T Narrow(Acc<T> v) {
  return static_cast<T>(v);
}

// Lane l starts at `init` and becomes step(lane, i) for its elements i in ascending order; join(a, b)
// makes one of two lanes.
template <class A, class Step, class Join>
inline A LaneFold(int64_t n, A init, Step&& step, Join&& join) {
  A lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = init;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lane[l] = step(lane[l], i + l);
  }
  for (int l = 0; i < n; ++i, ++l) lane[l] = step(lane[l], i);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lane[l] = join(lane[l], lane[l + width]);
  }
  return lane[0];
}

// Σ_i step(…), as an accumulation: step(acc, i) returns acc plus the i-th term.
template <class A, class Step>
inline A LaneSum(int64_t n, Step&& step) {
  return LaneFold<A>(n, A(0), step, [](A a, A b) { return a + b; });
}

// max_i value(i); NaNs are passed over.
template <class A, class Value>
inline A LaneMax(int64_t n, A init, Value&& value) {
  auto larger = [](A a, A b) { return b > a ? b : a; };
  return LaneFold<A>(n, init, [&](A a, int64_t i) { return larger(a, value(i)); }, larger);
}

}  // namespace hone::kernels
