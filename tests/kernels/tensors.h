// What the kernel tests share: random tensors, comparison of bits, gradients by central
// differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "tests/kernels/host.h"

namespace hone {

// Normally distributed, the same for the same seed; a bf16 or f32 tensor holds the f64 one rounded.
inline Tensor Random(Context& ctx, const Shape& shape, DType dtype, uint32_t seed) {
  std::mt19937 bits(seed);
  std::normal_distribution<double> normal;
  Tensor wide = HostTensor(shape, DType::kF64);
  for (int64_t i = 0; i < wide.size(); ++i) wide.data<double>()[i] = normal(bits);
  return OnDevice(ctx, OnHost(wide, dtype));
}

inline Tensor As(Context& ctx, const Tensor& t, DType dtype) {
  return OnDevice(ctx, OnHost(t, dtype));
}

inline ::testing::AssertionResult SameBits(const Tensor& left, const Tensor& right) {
  Tensor a = OnHost(left), b = OnHost(right);
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) {
    return ::testing::AssertionFailure()
           << runtime::ShapeToString(a.shape()) << " against " << runtime::ShapeToString(b.shape());
  }
  int64_t width = runtime::DTypeSize(a.dtype());
  for (int64_t r = 0; r < a.rows(); ++r) {
    auto* x = static_cast<const char*>(a.raw()) + r * a.row_stride() * width;
    auto* y = static_cast<const char*>(b.raw()) + r * b.row_stride() * width;
    for (int64_t c = 0; c < a.cols(); ++c) {
      if (std::memcmp(x + c * width, y + c * width, width) != 0) {
        return ::testing::AssertionFailure()
               << "row " << r << ", column " << c << ": " << ToDoubles(a)[r * a.cols() + c]
               << " against " << ToDoubles(b)[r * a.cols() + c];
      }
    }
  }
  return ::testing::AssertionSuccess();
}

// max |a − b| / max(1, max |b|), infinite where either is not finite; shapes must agree.
inline double Gap(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  std::vector<double> x = ToDoubles(a), y = ToDoubles(b);
  double gap = 0, size = 1;
  for (size_t i = 0; i < x.size(); ++i) {
    const double difference = std::abs(x[i] - y[i]);
    if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
    gap = std::max(gap, difference);
    size = std::max(size, std::abs(y[i]));
  }
  return gap / size;
}

// Σ a ∘ b: a loss whose gradient with respect to b is a.
inline double Inner(const Tensor& a, const Tensor& b) {
  std::vector<double> x = ToDoubles(a), y = ToDoubles(b);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// ∂ loss / ∂ x of an f64 tensor.
inline Tensor NumericGradient(Context& ctx, const Tensor& x, const std::function<double()>& loss,
                              double step = 1e-5) {
  Tensor gradient = HostTensor(x.shape(), DType::kF64);
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t c = 0; c < x.cols(); ++c) {
      double kept = Peek(x, r, c);
      Poke(x, r, c, kept + step);
      double above = loss();
      Poke(x, r, c, kept - step);
      double below = loss();
      Poke(x, r, c, kept);
      gradient.row<double>(r)[c] = (above - below) / (2 * step);
    }
  }
  return OnDevice(ctx, gradient);
}

}  // namespace hone
