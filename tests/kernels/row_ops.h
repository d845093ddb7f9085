// What the tests of the row-wise kernels share: random tensors, numeric gradients, comparisons.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/philox.h"
#include "tests/kernels/host.h"
#include "tests/read_json.h"

namespace hone::kernels::testing {

using runtime::Shape;

inline nlohmann::json Fixture(const std::string& key) {
  const char* elsewhere = std::getenv("HONE_SOURCE_DIR");  // in a bundle
  return ReadJson(std::string(elsewhere ? elsewhere : HONE_SOURCE_DIR) +
                  "/tests/fixtures/kernels/row_ops.json")
      .at(key);
}

// From doubles, rounded to `dtype`.
inline Tensor Make(Context& ctx, Shape shape, const std::vector<double>& values, DType dtype) {
  Tensor wide = HostTensor(std::move(shape), DType::kF64);
  std::copy(values.begin(), values.end(), wide.data<double>());
  return OnDevice(ctx, OnHost(wide, dtype));
}

// Normal values; the same for every dtype up to rounding.
inline Tensor Random(Context& ctx, Shape shape, DType dtype, uint64_t seed, double scale = 1.0) {
  RandomStream stream({seed});
  std::vector<double> values(runtime::NumElements(shape));
  for (size_t i = 0; i < values.size(); ++i) values[i] = scale * stream.Normal(i);
  return Make(ctx, std::move(shape), values, dtype);
}

inline double WeightedSum(const Tensor& y, const Tensor& weight) {
  std::vector<double> a = runtime::ToDoubles(y), b = runtime::ToDoubles(weight);
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Central differences of a scalar function of the f64 tensor `x`, which `f` reads anew at each
// call.
inline std::vector<double> NumericGradient(const Tensor& x, const std::function<double()>& f) {
  constexpr double kStep = 1e-5;
  std::vector<double> gradient;
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t c = 0; c < x.cols(); ++c) {
      double kept = Peek(x, r, c);
      Poke(x, r, c, kept + kStep);
      double above = f();
      Poke(x, r, c, kept - kStep);
      double below = f();
      Poke(x, r, c, kept);
      gradient.push_back((above - below) / (2 * kStep));
    }
  }
  return gradient;
}

// max|Δ| ≤ tolerance · max|want|
inline void ExpectClose(const std::vector<double>& got, const std::vector<double>& want,
                        double tolerance, const std::string& name) {
  ASSERT_EQ(got.size(), want.size()) << name;
  double difference = 0, scale = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i] - want[i])) << name << " element " << i;
    difference = std::max(difference, std::abs(got[i] - want[i]));
    scale = std::max(scale, std::abs(want[i]));
  }
  EXPECT_LE(difference, tolerance * scale) << name << ", largest value " << scale;
}
inline void ExpectClose(const Tensor& got, const Tensor& want, double tolerance,
                        const std::string& name) {
  ExpectClose(runtime::ToDoubles(got), runtime::ToDoubles(want), tolerance, name);
}
inline void ExpectClose(const Tensor& got, const std::vector<double>& want, double tolerance,
                        const std::string& name) {
  ExpectClose(runtime::ToDoubles(got), want, tolerance, name);
}

inline void ExpectSameBits(const Tensor& left, const Tensor& right, const std::string& name) {
  Tensor a = OnHost(left), b = OnHost(right);
  ASSERT_EQ(a.shape(), b.shape()) << name;
  ASSERT_EQ(a.dtype(), b.dtype()) << name;
  int64_t width = runtime::DTypeSize(a.dtype());
  for (int64_t r = 0; r < a.rows(); ++r) {
    const char* p = static_cast<const char*>(a.raw()) + r * a.row_stride() * width;
    const char* q = static_cast<const char*>(b.raw()) + r * b.row_stride() * width;
    ASSERT_EQ(std::memcmp(p, q, a.cols() * width), 0) << name << " row " << r;
  }
}

// The statement throws E, and its message holds every one of `parts`.
template <class E>
void ExpectThrows(const std::function<void()>& statement, const std::vector<std::string>& parts) {
  try {
    statement();
  } catch (const E& e) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << "'" << part << "' is not in: " << e.what();
    }
    return;
  }
  ADD_FAILURE() << "nothing was thrown; expected a message with '" << parts.front() << "'";
}

}  // namespace hone::kernels::testing
