// emulated: all
#include "kernels/elementwise/elementwise.h"

#include <gtest/gtest.h>

#include <array>

#include "tests/kernels/tensors.h"

namespace hone::kernels {
namespace {

constexpr DType kFloats[] = {DType::kF32, DType::kBF16, DType::kF64};

// fn of two values in doubles, rounded to x's dtype: what each sum or product must be, since both
// f32 and bf16 operands are exact in f64 and rounding once to f32 on the way is harmless for f32.
Tensor Expected(Context& ctx, const Tensor& x, const std::function<double(int64_t, double)>& fn) {
  Tensor wide = HostTensor(x.shape(), DType::kF64);
  std::vector<double> values = ToDoubles(x);
  for (size_t i = 0; i < values.size(); ++i) wide.data<double>()[i] = fn(i, values[i]);
  if (x.dtype() != DType::kBF16) return As(ctx, wide, x.dtype());
  return As(ctx, As(ctx, wide, DType::kF32), DType::kBF16);
}

TEST(Elementwise, AddsEveryPairOfDtypesAndStrides) {
  for (int threads : {1, 2}) {
    Context ctx(TestDevice(), threads);
    for (DType dx : kFloats) {
      for (DType dy : kFloats) {
        for (auto [rows, first, last] :
             {std::array<int64_t, 3>{300, 3, 120}, {30, 16, 96}, {3, 1, 4507}, {2, 0, 4112}}) {
          Tensor x = Random(ctx, {rows, last + 16}, dx, 1).Columns(first, last);
          Tensor y = Random(ctx, {rows, last - first}, dy, 2);
          std::vector<double> ys = ToDoubles(y);
          Tensor expected = Expected(ctx, x, [&](int64_t i, double v) { return v + ys[i]; });
          AddInPlace(ctx, x, y);
          EXPECT_LT(Gap(x, expected), dx == DType::kF64 ? 1e-15 : dx == DType::kF32 ? 1e-7 : 1e-2);
          if (dy != DType::kF64) {
            EXPECT_TRUE(SameBits(x, expected));
          }
        }
      }
    }
  }
}

TEST(Elementwise, AddScaleAndRowFactors) {
  Context ctx(TestDevice(), 2);
  for (DType dtype : kFloats) {
    Tensor x = Random(ctx, {700, 33}, dtype, 1), y = Random(ctx, {700, 33}, dtype, 2);
    std::vector<double> ys = ToDoubles(y);
    EXPECT_TRUE(
        SameBits(Add(ctx, x, y), Expected(ctx, x, [&](int64_t i, double v) { return v + ys[i]; })));
    Tensor scaled = ctx.Clone(x);
    ScaleInPlace(ctx, scaled, 0.375);
    EXPECT_TRUE(SameBits(scaled, Expected(ctx, x, [](int64_t, double v) { return v * 0.375; })));
    Tensor factor = Random(ctx, {700}, DType::kF32, 3), rows = ctx.Clone(x);
    std::vector<double> factors = ToDoubles(factor);
    MultiplyRowsInPlace(ctx, rows, factor);
    EXPECT_TRUE(
        SameBits(rows, Expected(ctx, x, [&](int64_t i, double v) { return v * factors[i / 33]; })));
    Tensor wide = Random(ctx, {3, 4500}, dtype, 4), before = ctx.Clone(wide);
    MultiplyRowsInPlace(ctx, wide, factor.Slice(5, 8));
    EXPECT_TRUE(SameBits(wide, Expected(ctx, before, [&](int64_t i, double v) {
                           return v * factors[5 + i / 4500];
                         })));
  }
}

TEST(Elementwise, CastsBetweenAllFloatDtypes) {
  Context ctx(TestDevice(), 2);
  for (DType from : kFloats) {
    for (DType to : kFloats) {
      Tensor x = Random(ctx, {401, 50}, from, 1).Columns(1, 48);
      EXPECT_LT(Gap(Cast(ctx, x, to), As(ctx, x, to)), 1e-2);
      if (from != DType::kF64) {
        EXPECT_TRUE(SameBits(Cast(ctx, x, to), As(ctx, x, to)));
      }
    }
  }
  Tensor x = Random(ctx, {3}, DType::kF32, 1);
  EXPECT_EQ(Cast(ctx, x, DType::kF32).raw(), x.raw()) << "a cast to the same dtype copies nothing";
}

TEST(Elementwise, TakesNothingAndRefusesWhatDoesNotFit) {
  Context ctx(TestDevice(), 2);
  Tensor empty = ctx.Empty({0, 4}, DType::kF32), x = ctx.Zeros({2, 4}, DType::kF32);
  AddInPlace(ctx, empty, empty);
  EXPECT_EQ(Cast(ctx, empty, DType::kBF16).shape(), empty.shape());
  EXPECT_THROW(Add(ctx, x, empty), ShapeError);
  EXPECT_THROW(Add(ctx, x, ctx.Zeros({2, 4}, DType::kF64)), ShapeError);
  EXPECT_THROW(MultiplyRowsInPlace(ctx, x, ctx.Zeros({4}, DType::kF32)), ShapeError);
  EXPECT_THROW(ScaleInPlace(ctx, ctx.Zeros({2}, DType::kI32), 2), ShapeError);
}

}  // namespace
}  // namespace hone::kernels
