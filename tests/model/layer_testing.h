// What tests of layers share: reproducible values, and gradients against central differences in
// f64.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "model/layers/layer.h"
#include "runtime/philox.h"

namespace hone::model {

inline Tensor FromDoubles(Context& ctx, const std::vector<double>& values, Shape shape,
                          DType dtype) {
  Tensor source(const_cast<double*>(values.data()), shape, DType::kF64, Device::Cpu());
  Tensor t = ctx.Empty(std::move(shape), dtype);
  CopyTo(source, t);
  return t;
}

inline Tensor RandomTensor(Context& ctx, Shape shape, DType dtype, uint64_t seed,
                           double scale = 1.0) {
  RandomStream stream({seed, HashName("test tensor")});
  std::vector<double> values(runtime::NumElements(shape));
  for (size_t i = 0; i < values.size(); ++i) values[i] = scale * stream.Normal(i);
  return FromDoubles(ctx, values, std::move(shape), dtype);
}

// Every parameter as a function of its global name and element: norms near 1, the rest near 0.
inline void FillParameters(Context& ctx, const ParameterBuilder& builder, uint64_t seed,
                           double scale = 0.3) {
  for (const ParameterBuilder::Entry& entry : builder.entries()) {
    Parameter& p = *entry.parameter;
    RandomStream stream({seed, HashName(p.spec.name)});
    int64_t row = p.spec.slab.size() / std::max<int64_t>(1, p.spec.slab.extent[0]);
    int64_t first = p.spec.slab.offset[0] * row;
    double mean = entry.init == ParameterBuilder::Init::kOnes ? 1.0 : 0.0;
    std::vector<double> values(p.spec.slab.size());
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = mean + scale * stream.Normal(first + static_cast<int64_t>(i));
    }
    CopyTo(FromDoubles(ctx, values, p.value.shape(), DType::kF64), p.value);
  }
}

inline void ZeroGradients(const ParameterBuilder& builder) {
  for (const ParameterBuilder::Entry& entry : builder.entries()) {
    const Tensor& g = entry.parameter->gradient;
    if (g.defined()) std::memset(g.raw(), 0, g.bytes());
  }
}

inline double Dot(const Tensor& a, const Tensor& b) {
  std::vector<double> x = ToDoubles(a), y = ToDoubles(b);
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

// max|a − b| / max|b|; infinite where either is not finite.
inline double RelativeError(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, largest = 1e-300;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (!std::isfinite(a[i] - b[i])) return INFINITY;
    difference = std::max(difference, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return difference / largest;
}

// `analytic` against (loss(x + h) − loss(x − h)) / 2h for at most `limit` elements of the
// contiguous f64 tensor `x`, spread over all rows and columns.
inline void ExpectGradient(const std::string& name, const Tensor& x, const Tensor& analytic,
                           const std::function<double()>& loss, int64_t limit = 60) {
  constexpr double kStep = 1e-5;
  ASSERT_TRUE(analytic.defined()) << name;
  std::vector<double> want, got, all = ToDoubles(analytic);
  int64_t stride = std::max<int64_t>(1, x.size() / limit);
  while (std::gcd(stride, x.cols()) != 1) ++stride;
  for (int64_t i = 0; i < x.size(); i += stride) {
    double& value = x.data<double>()[i];
    const double kept = value;
    value = kept + kStep;
    double up = loss();
    value = kept - kStep;
    double down = loss();
    value = kept;
    want.push_back((up - down) / (2 * kStep));
    got.push_back(all[i]);
  }
  EXPECT_LE(RelativeError(got, want), 1e-6) << name;
}

inline void ExpectParameterGradients(const ParameterBuilder& builder,
                                     const std::function<double()>& loss, int64_t limit = 60) {
  for (const ParameterBuilder::Entry& entry : builder.entries()) {
    const Parameter& p = *entry.parameter;
    if (p.gradient.defined()) ExpectGradient(p.spec.name, p.value, p.gradient, loss, limit);
  }
}

inline bool SameBits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  int64_t width = runtime::DTypeSize(a.dtype());
  for (int64_t r = 0; r < a.rows(); ++r) {
    if (std::memcmp(static_cast<char*>(a.raw()) + r * a.row_stride() * width,
                    static_cast<char*>(b.raw()) + r * b.row_stride() * width, a.cols() * width)) {
      return false;
    }
  }
  return true;
}

// The two builders made the same parameters; their gradients have the same bits, from entry `first`
// on.
inline void ExpectSameGradients(const ParameterBuilder& a, const ParameterBuilder& b,
                                size_t first = 0) {
  ASSERT_EQ(a.entries().size(), b.entries().size());
  for (size_t i = first; i < a.entries().size(); ++i) {
    const Parameter &p = *a.entries()[i].parameter, &q = *b.entries()[i].parameter;
    ASSERT_EQ(p.gradient.defined(), q.gradient.defined()) << p.spec.name;
    if (p.gradient.defined()) {
      EXPECT_TRUE(SameBits(p.gradient, q.gradient)) << p.spec.name;
    }
  }
}

// Positions of sequences laid end to end.
inline std::vector<int32_t> PackedPositions(const std::vector<int32_t>& cu_seqlens) {
  std::vector<int32_t> position_T;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    for (int32_t i = 0; i < cu_seqlens[s + 1] - cu_seqlens[s]; ++i) position_T.push_back(i);
  }
  return position_T;
}

}  // namespace hone::model
