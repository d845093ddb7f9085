// emulated: descending
#include "kernels/grouped_gemm/grouped_gemm.h"

#include <gtest/gtest.h>

#include "kernels/linear/linear.h"
#include "tests/device.h"
#include "tests/kernels/tensors.h"

namespace hone::kernels {
namespace {

using Offsets = std::vector<int64_t>;

Tensor Matrix(const Tensor& w_ENK, int64_t e) {
  return w_ENK.Slice(e, e + 1).Reshape({w_ENK.dim(1), w_ENK.dim(2)});
}

// Each expert by itself, through Linear, is the reference; groups of 0, 1, few and many rows.
class Grouped : public ::testing::TestWithParam<std::tuple<Offsets, DType, int>> {};

TEST_P(Grouped, IsLinearForEachExpert) {
  auto [offset, dtype, threads] = GetParam();
  Context ctx(TestDevice(), threads);
  int64_t E = static_cast<int64_t>(offset.size()) - 1, R = offset.back(), N = 37, K = 29;
  DType acc = dtype == DType::kF64 ? dtype : DType::kF32;
  Tensor x = Random(ctx, {R, K}, dtype, 1), w = Random(ctx, {E, N, K}, dtype, 2);
  Tensor dy = Random(ctx, {R, N}, dtype, 3), dw = Random(ctx, {E, N, K}, acc, 4);
  Tensor expected_dw = ctx.Clone(dw);
  Tensor y = GroupedLinear(ctx, x, w, offset);
  Tensor dx = GroupedLinearInputGradient(ctx, dy, w, offset);
  GroupedLinearWeightGradient(ctx, dy, x, dw, offset);
  ASSERT_EQ(y.shape(), (Shape{R, N}));
  ASSERT_EQ(dx.shape(), (Shape{R, K}));
  for (int64_t e = 0; e < E; ++e) {
    int64_t begin = offset[e], end = offset[e + 1];
    Tensor x_e = x.Slice(begin, end), dy_e = dy.Slice(begin, end);
    EXPECT_TRUE(SameBits(y.Slice(begin, end), Linear(ctx, x_e, Matrix(w, e)))) << e;
    EXPECT_TRUE(SameBits(dx.Slice(begin, end), LinearInputGradient(ctx, dy_e, Matrix(w, e)))) << e;
    LinearWeightGradient(ctx, dy_e, x_e, Matrix(expected_dw, e));
  }
  EXPECT_TRUE(SameBits(dw, expected_dw));
}
INSTANTIATE_TEST_SUITE_P(
    All, Grouped,
    ::testing::Combine(::testing::Values(Offsets{0, 0}, Offsets{0, 0, 5, 5, 6, 70, 70},
                                         Offsets{0, 800, 801, 1000},
                                         Offsets{0, 1, 2, 4, 4, 30, 31, 55, 60, 61, 64, 65, 70}),
                       ::testing::Values(DType::kF32, DType::kBF16, DType::kF64),
                       ::testing::Values(1, 2, 3)));

TEST(GroupedLinear, GradientsAgreeWithFiniteDifferences) {
  Context ctx(TestDevice(), 2);
  DType f64 = DType::kF64;
  Offsets offset = {0, 3, 3, 4, 9};
  Tensor x = Random(ctx, {9, 5}, f64, 1), w = Random(ctx, {4, 7, 5}, f64, 2);
  Tensor dy = Random(ctx, {9, 7}, f64, 3), dw = ctx.Zeros({4, 7, 5}, f64);
  auto loss = [&] { return Inner(dy, GroupedLinear(ctx, x, w, offset)); };
  EXPECT_LT(Gap(GroupedLinearInputGradient(ctx, dy, w, offset), NumericGradient(ctx, x, loss)),
            1e-6);
  GroupedLinearWeightGradient(ctx, dy, x, dw, offset);
  EXPECT_LT(Gap(dw, NumericGradient(ctx, w, loss)), 1e-6);
}

TEST(GroupedLinear, RefusesOffsetsThatDoNotFit) {
  Context ctx(TestDevice());
  Tensor x = ctx.Zeros({6, 4}, DType::kF32), w = ctx.Zeros({2, 3, 4}, DType::kF32);
  EXPECT_THROW(GroupedLinear(ctx, x, w, {0, 6}), ShapeError);
  EXPECT_THROW(GroupedLinear(ctx, x, w, {0, 3, 5}), ShapeError);
  EXPECT_THROW(GroupedLinear(ctx, x, w, {0, 7, 6}), ShapeError);
  EXPECT_THROW(GroupedLinear(ctx, x, ctx.Zeros({2, 3, 5}, DType::kF32), {0, 3, 6}), ShapeError);
}

}  // namespace
}  // namespace hone::kernels
