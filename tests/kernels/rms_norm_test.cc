// emulated: all
#include "kernels/norm/rms_norm.h"

#include "kernels/elementwise/elementwise.h"
#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

constexpr double kEps = 1e-5;

// The formula, in double, one element after the other.
std::vector<double> Reference(const Tensor& x, const Tensor& w) {
  std::vector<double> v = runtime::ToDoubles(x), scale = runtime::ToDoubles(w), y;
  for (int64_t r = 0; r < x.rows(); ++r) {
    double sum = 0;
    for (int64_t i = 0; i < x.cols(); ++i) sum += v[r * x.cols() + i] * v[r * x.cols() + i];
    double rms = std::sqrt(sum / static_cast<double>(x.cols()) + kEps);
    for (int64_t i = 0; i < x.cols(); ++i) y.push_back(v[r * x.cols() + i] / rms * scale[i]);
  }
  return y;
}

TEST(RmsNorm, MatchesTheFormula) {
  Context ctx(TestDevice());
  struct Case {
    DType dtype;
    double tolerance;
  };
  for (auto [dtype, tolerance] :
       {Case{DType::kF64, 1e-14}, Case{DType::kF32, 5e-7}, Case{DType::kBF16, 4e-3}}) {
    for (int64_t dim : {1, 7, 16, 75, 1024, 1300, 4104}) {
      Tensor x = Random(ctx, {2, 3, dim}, dtype, 1, 3.0), w = Random(ctx, {dim}, dtype, 2);
      Tensor y = RmsNorm(ctx, x, w, kEps);
      EXPECT_EQ(y.dtype(), dtype);
      ExpectClose(y, Reference(x, w), tolerance, fmt::format("y, dim {}", dim));
    }
  }
}

TEST(RmsNorm, EpsilonKeepsAZeroRowFinite) {
  Context ctx(TestDevice());
  Tensor x = ctx.Zeros({1, 5}, DType::kF32), w = Random(ctx, {5}, DType::kF32, 1);
  for (double v : runtime::ToDoubles(RmsNorm(ctx, x, w, kEps))) EXPECT_EQ(v, 0);
}

// Their squares do not fit the type: the same rows 2^k times smaller tell what is right.
TEST(RmsNorm, NumbersWhoseSquaresOverflow) {
  Context ctx(TestDevice());
  for (auto [dtype, large, tolerance] : {std::tuple{DType::kF32, 0x1p+100, 5e-7},
                                         {DType::kBF16, 0x1p+70, 4e-3},
                                         {DType::kF64, 0x1p+900, 1e-14}}) {
    for (int64_t dim : {1, 19, 1300}) {
      Tensor x = Random(ctx, {3, dim}, dtype, 1, 10.0), w = Random(ctx, {dim}, dtype, 2);
      Tensor dy = Random(ctx, {3, dim}, dtype, 3);
      std::vector<double> scaled = runtime::ToDoubles(x);
      for (double& v : scaled) v *= large;
      Tensor big = Make(ctx, {3, dim}, scaled, dtype);
      ExpectClose(RmsNorm(ctx, big, w, 0), RmsNorm(ctx, x, w, 0), tolerance, "y");
      DType wide = dtype == DType::kF64 ? DType::kF64 : DType::kF32;
      Tensor dw = ctx.Zeros({dim}, wide), want_dw = ctx.Zeros({dim}, wide);
      std::vector<double> dx = runtime::ToDoubles(RmsNormBackward(ctx, dy, big, w, dw, 0));
      std::vector<double> want_dx = runtime::ToDoubles(RmsNormBackward(ctx, dy, x, w, want_dw, 0));
      for (double& v : dx) v *= large;
      if (dim > 1) ExpectClose(dx, want_dx, 4 * tolerance, "dx");  // of one element it is 0
      ExpectClose(dw, want_dw, 2 * tolerance, "dw");
    }
  }
}

TEST(RmsNorm, BackwardMatchesFiniteDifferences) {
  Context ctx(TestDevice());
  Tensor x = Random(ctx, {5, 19}, DType::kF64, 1), w = Random(ctx, {19}, DType::kF64, 2);
  Tensor dy = Random(ctx, {5, 19}, DType::kF64, 3), dw = ctx.Zeros({19}, DType::kF64);
  Tensor dx = RmsNormBackward(ctx, dy, x, w, dw, kEps);
  auto loss = [&] { return WeightedSum(RmsNorm(ctx, x, w, kEps), dy); };
  ExpectClose(dx, NumericGradient(x, loss), 1e-8, "dx");
  ExpectClose(dw, NumericGradient(w, loss), 1e-8, "dw");
  RmsNormBackward(ctx, dy, x, w, dw, kEps);
  ScaleInPlace(ctx, dw, 0.5);
  ExpectClose(dw, NumericGradient(w, loss), 1e-8, "dw is added to");
}

TEST(RmsNorm, BackwardInLowPrecisionMatchesDouble) {
  Context ctx(TestDevice());
  for (auto [dtype, tolerance] : {std::pair{DType::kF32, 1e-6}, std::pair{DType::kBF16, 8e-3}}) {
    Tensor x = Random(ctx, {200, 48}, dtype, 1), w = Random(ctx, {48}, dtype, 2);
    Tensor dy = Random(ctx, {200, 48}, dtype, 3), dw = ctx.Zeros({48}, DType::kF32);
    Tensor dx = RmsNormBackward(ctx, dy, x, w, dw, kEps);
    auto wide = [&](const Tensor& t) {
      return Make(ctx, t.shape(), runtime::ToDoubles(t), DType::kF64);
    };
    Tensor dw64 = ctx.Zeros({48}, DType::kF64);
    Tensor dx64 = RmsNormBackward(ctx, wide(dy), wide(x), wide(w), dw64, kEps);
    ExpectClose(dx, dx64, tolerance, "dx");
    ExpectClose(dw, dw64, 2e-6, "dw");
  }
}

// dx and dw by the formula, in double.
std::pair<std::vector<double>, std::vector<double>> GradientReference(const Tensor& dy,
                                                                      const Tensor& x,
                                                                      const Tensor& w) {
  std::vector<double> g = runtime::ToDoubles(dy), v = runtime::ToDoubles(x);
  std::vector<double> scale = runtime::ToDoubles(w), dx(v.size()), dw(scale.size(), 0.0);
  size_t cols = scale.size();
  for (size_t row = 0; row < v.size(); row += cols) {
    double squares = 0, dot = 0;
    for (size_t i = 0; i < cols; ++i) {
      squares += v[row + i] * v[row + i];
      dot += g[row + i] * scale[i] * v[row + i];
    }
    double inverse = 1 / std::sqrt(squares / static_cast<double>(cols) + kEps);
    double mean = dot * inverse / static_cast<double>(cols);
    for (size_t i = 0; i < cols; ++i) {
      double normed = v[row + i] * inverse;
      dx[row + i] = inverse * (scale[i] * g[row + i] - normed * mean);
      dw[i] += g[row + i] * normed;
    }
  }
  return {dx, dw};
}

TEST(RmsNorm, BackwardOfManyAndOfLongRowsMatchesTheFormula) {
  Context ctx(TestDevice());
  struct Case {
    DType dtype;
    double dx, dw;
  };
  for (auto [dtype, dx_bound, dw_bound] :
       {Case{DType::kF64, 1e-13, 1e-13}, Case{DType::kF32, 1e-6, 2e-6},
        Case{DType::kBF16, 8e-3, 2e-6}}) {
    for (Shape shape : {Shape{50, 64}, Shape{37, 1300}, Shape{18, 2056}, Shape{9000, 3}}) {
      Tensor x = Random(ctx, shape, dtype, 1, 3.0), w = Random(ctx, {shape[1]}, dtype, 2);
      Tensor dy = Random(ctx, shape, dtype, 3);
      Tensor dw = ctx.Zeros({shape[1]}, dtype == DType::kF64 ? dtype : DType::kF32);
      Tensor dx = RmsNormBackward(ctx, dy, x, w, dw, kEps);
      auto [want_dx, want_dw] = GradientReference(dy, x, w);
      ExpectClose(dx, want_dx, dx_bound, "dx " + runtime::ShapeToString(shape));
      ExpectClose(dw, want_dw, dw_bound, "dw " + runtime::ShapeToString(shape));
    }
  }
}

// With a residual stream: the bits of the sum and of the norm by themselves.
TEST(RmsNorm, OfASumAndBackwardPlusMore) {
  Context ctx(TestDevice(), 2);
  for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    for (Shape shape : {Shape{50, 64}, Shape{700, 131}}) {
      const Tensor x = Random(ctx, shape, dtype, 1), more = Random(ctx, shape, dtype, 2);
      const Tensor w = Random(ctx, {shape[1]}, dtype, 3), dy = Random(ctx, shape, dtype, 4);
      const Tensor sum = ctx.Clone(x), want_sum = ctx.Clone(x);
      AddInPlace(ctx, want_sum, more);
      const Tensor y = RmsNormOfSum(ctx, sum, more, w, kEps);
      ExpectSameBits(sum, want_sum, "sum");
      ExpectSameBits(y, RmsNorm(ctx, want_sum, w, kEps), "y");

      const DType wide = dtype == DType::kF64 ? dtype : DType::kF32;
      Tensor dw = ctx.Zeros({shape[1]}, wide), want_dw = ctx.Zeros({shape[1]}, wide);
      const Tensor dx = RmsNormBackward(ctx, dy, x, w, dw, kEps, &more);
      Tensor want_dx = RmsNormBackward(ctx, dy, x, w, want_dw, kEps);
      AddInPlace(ctx, want_dx, more);
      ExpectSameBits(dx, want_dx, "dx");
      ExpectSameBits(dw, want_dw, "dw");
    }
  }
}

TEST(RmsNorm, ARowsBitsAreItsOwn) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  Tensor x = Random(one, {3000, 77}, DType::kF32, 1), w = Random(one, {77}, DType::kF32, 2);
  Tensor dy = Random(one, {3000, 77}, DType::kF32, 3);
  Tensor dw = one.Zeros({77}, DType::kF32), dw2 = one.Zeros({77}, DType::kF32);
  Tensor y = RmsNorm(one, x, w, kEps), dx = RmsNormBackward(one, dy, x, w, dw, kEps);
  ExpectSameBits(RmsNorm(two, x, w, kEps), y, "y on two threads");
  ExpectSameBits(RmsNormBackward(two, dy, x, w, dw2, kEps), dx, "dx on two threads");
  ExpectSameBits(dw2, dw, "dw on two threads");
  for (int64_t r : {0, 7, 2999}) {
    ExpectSameBits(RmsNorm(one, x.Slice(r, r + 1), w, kEps), y.Slice(r, r + 1), "one row alone");
  }
}

TEST(RmsNorm, ReadsAViewOfAWiderTensor) {
  Context ctx(TestDevice());
  Tensor wide = Random(ctx, {4, 40}, DType::kF32, 1), w = Random(ctx, {24}, DType::kF32, 2);
  Tensor view = wide.Columns(8, 32);
  ExpectSameBits(RmsNorm(ctx, view, w, kEps), RmsNorm(ctx, ctx.Clone(view), w, kEps), "view");
}

TEST(RmsNorm, AcceptsNoRows) {
  Context ctx(TestDevice());
  Tensor x = ctx.Empty({0, 6}, DType::kF32), w = Random(ctx, {6}, DType::kF32, 1);
  Tensor dw = ctx.Zeros({6}, DType::kF32);
  EXPECT_EQ(RmsNorm(ctx, x, w, kEps).shape(), (Shape{0, 6}));
  EXPECT_EQ(RmsNormBackward(ctx, x, x, w, dw, kEps).shape(), (Shape{0, 6}));
  for (double v : runtime::ToDoubles(dw)) EXPECT_EQ(v, 0);
}

TEST(RmsNorm, NamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Tensor x = ctx.Zeros({2, 6}, DType::kF32), w = ctx.Zeros({5}, DType::kF32);
  ExpectThrows<ShapeError>([&] { RmsNorm(ctx, x, w, kEps); }, {"[rms_norm]", "w", "[5]", "[6]"});
  ExpectThrows<ShapeError>([&] { RmsNorm(ctx, x, ctx.Zeros({6}, DType::kF64), kEps); },
                           {"[rms_norm]", "f64", "f32"});
  ExpectThrows<ShapeError>([&] { RmsNorm(ctx, Tensor(), w, kEps); },
                           {"[rms_norm]", "x", "undefined"});
  ExpectThrows<ShapeError>(
      [&] {
        RmsNorm(ctx, ctx.Zeros({2, 6}, DType::kI32), ctx.Zeros({6}, DType::kI32), kEps);
      },
      {"[rms_norm]", "i32"});
  Tensor ok = ctx.Zeros({6}, DType::kF32);
  ExpectThrows<ShapeError>(
      [&] {
        RmsNormBackward(ctx, ctx.Zeros({3, 6}, DType::kF32), x, ok, ok, kEps);
      },
      {"[rms_norm]", "dy", "[3, 6]", "[2, 6]"});
  ExpectThrows<ShapeError>(
      [&] { RmsNormBackward(ctx, x, x, ok, ctx.Zeros({6}, DType::kF64), kEps); },
      {"[rms_norm]", "dw", "f64"});
}

}  // namespace
}  // namespace hone::kernels::testing
