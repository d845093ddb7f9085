// emulated: descending random:1
#include "kernels/linear/linear.h"

#include <gtest/gtest.h>

#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gemm.h"
#include "tests/device.h"
#include "tests/kernels/tensors.h"

namespace hone::kernels {
namespace {

// The CPU promises bits. On a GPU products that lie elsewhere in memory may be added in another
// order.
::testing::AssertionResult SameProducts(const Tensor& a, const Tensor& b) {
  if (TestDevice().is_cpu()) return SameBits(a, b);
  double gap = Gap(a, b);
  return gap <= 1e-5 ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << gap;
}

double Tolerance(DType dtype) {
  return dtype == DType::kF64 ? 1e-12 : dtype == DType::kF32 ? 1e-5 : 1e-2;
}

// x · wᵀ + bias as the contract words it: one scalar chain an element.
template <class T>
Tensor Chain(Context& ctx, const Tensor& x, const Tensor& w, const Tensor* bias) {
  Tensor y = ctx.Empty({x.dim(0), w.dim(0)}, x.dtype());
  for (int64_t t = 0; t < x.dim(0); ++t) {
    for (int64_t n = 0; n < w.dim(0); ++n) {
      T sum = bias ? bias->data<T>()[n] : T(0);
      for (int64_t k = 0; k < x.dim(1); ++k) sum = std::fma(x.row<T>(t)[k], w.row<T>(n)[k], sum);
      y.row<T>(t)[n] = sum;
    }
  }
  return y;
}

class LinearShapes : public ::testing::TestWithParam<std::array<int64_t, 3>> {};

TEST_P(LinearShapes, IsOneChainAnElementWhateverTheThreads) {
  auto [T, N, K] = GetParam();
  for (int threads : {1, 2, 3}) {
    Context ctx(Device::Cpu(), threads);
    Tensor x = Random(ctx, {T, K}, DType::kF32, 1), w = Random(ctx, {N, K}, DType::kF32, 2);
    Tensor bias = Random(ctx, {N}, DType::kF32, 3);
    EXPECT_TRUE(SameBits(Linear(ctx, x, w), Chain<float>(ctx, x, w, nullptr))) << threads;
    EXPECT_TRUE(SameBits(Linear(ctx, x, w, &bias), Chain<float>(ctx, x, w, &bias))) << threads;
    Tensor x64 = As(ctx, x, DType::kF64), w64 = As(ctx, w, DType::kF64);
    EXPECT_TRUE(SameBits(Linear(ctx, x64, w64), Chain<double>(ctx, x64, w64, nullptr))) << threads;
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, LinearShapes,
    ::testing::Values(std::array<int64_t, 3>{1, 1, 1}, std::array<int64_t, 3>{1, 600, 257},
                      std::array<int64_t, 3>{3, 48, 256}, std::array<int64_t, 3>{7, 31, 17},
                      std::array<int64_t, 3>{64, 197, 300}, std::array<int64_t, 3>{15, 1030, 40},
                      std::array<int64_t, 3>{1100, 33, 70}, std::array<int64_t, 3>{0, 5, 3},
                      std::array<int64_t, 3>{5, 4, 0}));

TEST(Linear, GivesARowTheSameBitsInEveryBatch) {
  Context one(TestDevice(), 1), two(TestDevice(), 2);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    std::vector<std::pair<int64_t, int64_t>> shapes = {{131, 203}, {96, 128}};
    // Where a library gains most by splits of the inner dimension.
    if (OnGpu()) shapes.insert(shapes.end(), {{512, 8960}, {256, 1536}, {16, 4096}});
    for (auto [N, K] : shapes) {
      Tensor x = Random(one, {1024, K}, dtype, 1), w = Random(one, {N, K}, dtype, 2);
      Tensor all = Linear(two, x, w), wide_dx = LinearInputGradient(two, all, w);
      for (int64_t rows : {1, 3, 7, 64, 257}) {
        for (int64_t at : {int64_t{0}, int64_t{5}, 1024 - rows}) {
          for (Context* ctx : {&one, &two}) {
            Tensor some = Linear(*ctx, x.Slice(at, at + rows), w);
            EXPECT_TRUE(SameBits(some, all.Slice(at, at + rows))) << rows << " rows at " << at;
            EXPECT_TRUE(SameBits(LinearInputGradient(*ctx, some, w), wide_dx.Slice(at, at + rows)))
                << rows << " rows at " << at;
          }
        }
      }
    }
  }
}

class LinearNumerics : public ::testing::TestWithParam<Numerics> {};
INSTANTIATE_TEST_SUITE_P(All, LinearNumerics,
                         ::testing::Values(Numerics::kBatchInvariant, Numerics::kFast,
                                           Numerics::kFixedPoint));

TEST_P(LinearNumerics, AgreesWithDoubles) {
  Context ctx(TestDevice(), 2);
  ctx.numerics = GetParam();
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Tensor x = Random(ctx, {37, 600}, dtype, 1), w = Random(ctx, {45, 600}, dtype, 2);
    Tensor bias = Random(ctx, {45}, dtype, 3), dy = Random(ctx, {37, 45}, dtype, 4);
    Tensor dw = Random(ctx, {45, 600}, DType::kF32, 5), dbias = Random(ctx, {45}, DType::kF32, 6);
    auto wide = [&](const Tensor& t) { return As(ctx, t, DType::kF64); };
    Tensor x64 = wide(x), w64 = wide(w), bias64 = wide(bias), dy64 = wide(dy);
    Tensor dw64 = wide(dw), dbias64 = wide(dbias);
    EXPECT_LT(Gap(Linear(ctx, x, w), Linear(ctx, x64, w64)), Tolerance(dtype));
    EXPECT_LT(Gap(Linear(ctx, x, w, &bias), Linear(ctx, x64, w64, &bias64)), Tolerance(dtype));
    EXPECT_LT(Gap(LinearInputGradient(ctx, dy, w), LinearInputGradient(ctx, dy64, w64)),
              Tolerance(dtype));
    LinearWeightGradient(ctx, dy, x, dw, &dbias);
    LinearWeightGradient(ctx, dy64, x64, dw64, &dbias64);
    EXPECT_LT(Gap(dw, dw64), 1e-5);
    EXPECT_LT(Gap(dbias, dbias64), 1e-5);
  }
}

// Against loops on the host, so that f64, the oracle of the rest, has one of its own.
TEST(Linear, DoublesAgreeWithLoops) {
  Context ctx(TestDevice()), host;
  for (auto [T, N, K] : {std::array<int64_t, 3>{7, 31, 17}, {1, 1, 1}, {70, 5, 40}}) {
    Tensor x = Random(host, {T, K}, DType::kF64, 1), w = Random(host, {N, K}, DType::kF64, 2);
    Tensor bias = Random(host, {N}, DType::kF64, 3), bias_on_device = ctx.Empty({N}, DType::kF64);
    Tensor x_on_device = ctx.Empty({T, K}, DType::kF64),
           w_on_device = ctx.Empty({N, K}, DType::kF64);
    CopyTo(x, x_on_device);
    CopyTo(w, w_on_device);
    CopyTo(bias, bias_on_device);
    EXPECT_LT(Gap(Linear(ctx, x_on_device, w_on_device, &bias_on_device),
                  Chain<double>(host, x, w, &bias)),
              1e-12);
  }
}

TEST(Linear, TakesEmptySides) {
  Context ctx(TestDevice());
  for (auto [T, N, K] : {std::array<int64_t, 3>{0, 5, 3}, {5, 4, 0}, {5, 0, 3}}) {
    Tensor x = Random(ctx, {T, K}, DType::kF32, 1), w = Random(ctx, {N, K}, DType::kF32, 2);
    Tensor bias = Random(ctx, {N}, DType::kF32, 3), dw = Random(ctx, {N, K}, DType::kF32, 4);
    Tensor y = Linear(ctx, x, w, &bias), before = ctx.Clone(dw);
    EXPECT_EQ(y.shape(), (Shape{T, N}));
    for (int64_t t = 0; t < T && K == 0; ++t) {
      EXPECT_EQ(runtime::ToVector<float>(y.Slice(t, t + 1)), runtime::ToVector<float>(bias));
    }
    EXPECT_EQ(LinearInputGradient(ctx, y, w).shape(), (Shape{T, K}));
    LinearWeightGradient(ctx, y, x, dw);
    if (T == 0) {
      EXPECT_TRUE(SameBits(dw, before));
    }
  }
}

TEST(Linear, RoundsBf16OnceAfterAccumulatingInF32) {
  Context ctx(Device::Cpu(), 2);
  DType bf16 = DType::kBF16, f32 = DType::kF32;
  Tensor x = Random(ctx, {19, 333}, bf16, 1), w = Random(ctx, {50, 333}, bf16, 2);
  Tensor bias = Random(ctx, {50}, bf16, 3), wide_bias = As(ctx, bias, f32);
  Tensor wide = Linear(ctx, As(ctx, x, f32), As(ctx, w, f32), &wide_bias);
  EXPECT_TRUE(SameBits(Linear(ctx, x, w, &bias), As(ctx, wide, bf16)));

  Tensor dy = Random(ctx, {19, 50}, bf16, 4);
  Tensor wide_dx = LinearInputGradient(ctx, As(ctx, dy, f32), As(ctx, w, f32));
  EXPECT_TRUE(SameBits(LinearInputGradient(ctx, dy, w), As(ctx, wide_dx, bf16)));
  Tensor dw = ctx.Zeros({50, 333}, f32), wide_dw = ctx.Zeros({50, 333}, f32);
  LinearWeightGradient(ctx, dy, x, dw);
  LinearWeightGradient(ctx, As(ctx, dy, f32), As(ctx, x, f32), wide_dw);
  EXPECT_TRUE(SameBits(dw, wide_dw));
}

TEST(Linear, GradientsAgreeWithFiniteDifferences) {
  Context ctx(TestDevice(), 2);
  DType f64 = DType::kF64;
  Tensor x = Random(ctx, {9, 13}, f64, 1), w = Random(ctx, {17, 13}, f64, 2);
  Tensor bias = Random(ctx, {17}, f64, 3), dy = Random(ctx, {9, 17}, f64, 4);
  auto loss = [&] { return Inner(dy, Linear(ctx, x, w, &bias)); };
  EXPECT_LT(Gap(LinearInputGradient(ctx, dy, w), NumericGradient(ctx, x, loss)), 1e-6);
  Tensor dw = ctx.Zeros({17, 13}, f64), dbias = ctx.Zeros({17}, f64);
  LinearWeightGradient(ctx, dy, x, dw, &dbias);
  EXPECT_LT(Gap(dw, NumericGradient(ctx, w, loss)), 1e-6);
  EXPECT_LT(Gap(dbias, NumericGradient(ctx, bias, loss)), 1e-6);
}

TEST(Linear, WeightGradientAddsAndDoesNotSeeHowTokensAreSplit) {
  for (int threads : {1, 2}) {
    Context ctx(Device::Cpu(), threads);
    Tensor x = Random(ctx, {700, 61}, DType::kF32, 1), dy = Random(ctx, {700, 43}, DType::kF32, 2);
    Tensor whole = Random(ctx, {43, 61}, DType::kF32, 3), whole_bias = ctx.Zeros({43}, DType::kF32);
    Tensor parts = ctx.Clone(whole), parts_bias = ctx.Zeros({43}, DType::kF32);
    Tensor before = ctx.Clone(whole), zero = ctx.Zeros({43, 61}, DType::kF64);
    LinearWeightGradient(ctx, dy, x, whole, &whole_bias);
    int64_t at = 0;
    for (int64_t end : {1, 257, 257, 300, 700}) {
      LinearWeightGradient(ctx, dy.Slice(at, end), x.Slice(at, end), parts, &parts_bias);
      at = end;
    }
    EXPECT_TRUE(SameBits(whole, parts));
    EXPECT_TRUE(SameBits(whole_bias, parts_bias));
    LinearWeightGradient(ctx, As(ctx, dy, DType::kF64), As(ctx, x, DType::kF64), zero);
    for (int64_t i = 0; i < zero.size(); ++i) zero.data<double>()[i] += before.data<float>()[i];
    EXPECT_LT(Gap(whole, zero), 1e-5);
  }
}

TEST(Linear, ReadsViews) {
  Context ctx(TestDevice(), 2);
  Tensor wide_x = Random(ctx, {40, 90}, DType::kF32, 1), x = wide_x.Columns(7, 71);
  Tensor wide_w = Random(ctx, {33, 100}, DType::kF32, 2), w = wide_w.Columns(30, 94);
  EXPECT_TRUE(SameProducts(Linear(ctx, x, w), Linear(ctx, ctx.Clone(x), ctx.Clone(w))));
  Tensor dy = Random(ctx, {40, 80}, DType::kF32, 3).Columns(40, 73);
  EXPECT_TRUE(SameProducts(LinearInputGradient(ctx, dy, w),
                           LinearInputGradient(ctx, ctx.Clone(dy), ctx.Clone(w))));
  Tensor wide_dw = ctx.Zeros({33, 128}, DType::kF32), dw = ctx.Zeros({33, 64}, DType::kF32);
  LinearWeightGradient(ctx, dy, x, wide_dw.Columns(10, 74));
  LinearWeightGradient(ctx, dy, x, dw);
  EXPECT_TRUE(SameProducts(wide_dw.Columns(10, 74), dw));
  for (Tensor outside : {wide_dw.Columns(0, 10), wide_dw.Columns(74, 128)}) {
    for (double v : runtime::ToDoubles(outside)) EXPECT_EQ(v, 0) << "written outside of the view";
  }
}

// Three layers of one x, with and without a bias, as wide as those of grouped-query attention.
struct Layers {
  Tensor x;
  std::vector<Tensor> w, bias, dy, dw, dbias;

  Layers(Context& ctx, DType dtype, int64_t tokens, int64_t K)
      : x(Random(ctx, {tokens, K}, dtype, 1)) {
    for (int64_t N : {96, 32, 33}) {
      const auto seed = static_cast<uint32_t>(10 * w.size());
      w.push_back(Random(ctx, {N, K}, dtype, seed + 2));
      bias.push_back(Random(ctx, {N}, dtype, seed + 3));
      dy.push_back(Random(ctx, {tokens, N}, dtype, seed + 4));
      dw.push_back(Random(ctx, {N, K}, AccDType(dtype), seed + 5));
      dbias.push_back(Random(ctx, {N}, AccDType(dtype), seed + 6));
    }
  }
  const Tensor* Bias(size_t i) const { return i == 1 ? nullptr : &bias[i]; }
  std::vector<Tensor> Forward(Context& ctx) const {
    return LinearEach(ctx, x, {{w[0], Bias(0)}, {w[1], Bias(1)}, {w[2], Bias(2)}});
  }
  Tensor InputGradient(Context& ctx) const {
    return LinearInputGradientSum(ctx, {{dy[0], w[0]}, {dy[1], w[1]}, {dy[2], w[2]}});
  }
  void AddWeightGradients(Context& ctx) const {
    LinearWeightGradientEach(
        ctx, x, {{dy[0], dw[0], &dbias[0]}, {dy[1], dw[1]}, {dy[2], dw[2], &dbias[2]}});
  }
};

TEST_P(LinearNumerics, LayersOfOneInputGiveWhatEachGivesAlone) {
  for (int threads : {1, 2}) {
    Context ctx(TestDevice(), threads);
    ctx.numerics = GetParam();
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
      Layers layers(ctx, dtype, 300, 200), alone(ctx, dtype, 300, 200);
      const std::vector<Tensor> y = layers.Forward(ctx);
      layers.AddWeightGradients(ctx);
      for (size_t i = 0; i < y.size(); ++i) {
        const bool bias = i != 1;
        LinearWeightGradient(ctx, alone.dy[i], alone.x, alone.dw[i],
                             bias ? &alone.dbias[i] : nullptr);
        const Tensor y_alone = Linear(ctx, alone.x, alone.w[i], alone.Bias(i));
        // In company the matrix unit may take a layer that is too narrow for it alone.
        const bool bits = TestDevice().is_cpu() && ctx.numerics == Numerics::kBatchInvariant;
        const double tolerance = bits ? 0 : Tolerance(dtype);
        EXPECT_LE(Gap(y[i], y_alone), tolerance) << i;
        EXPECT_LE(Gap(layers.dw[i], alone.dw[i]), tolerance) << i;
        EXPECT_LE(Gap(layers.dbias[i], alone.dbias[i]), tolerance) << i;
      }
    }
  }
}

TEST_P(LinearNumerics, SumsTheInputGradientsOfLayers) {
  Context ctx(TestDevice(), 2);
  ctx.numerics = GetParam();
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    const Layers layers(ctx, dtype, 300, 200);
    Tensor sum = ctx.Zeros({300, 200}, DType::kF64);
    for (size_t i = 0; i < layers.w.size(); ++i) {
      AddInPlace(ctx, sum,
                 LinearInputGradient(ctx, As(ctx, layers.dy[i], DType::kF64),
                                     As(ctx, layers.w[i], DType::kF64)));
    }
    EXPECT_LT(Gap(layers.InputGradient(ctx), sum), Tolerance(dtype));
  }
}

TEST(Linear, InputGradientOfLayersIsTheSumOfEachOnes) {
  Context ctx(Device::Cpu(), 2);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    const Layers layers(ctx, dtype, 300, 200);
    const Tensor sum = LinearInputGradient(ctx, layers.dy[0], layers.w[0]);
    for (size_t i : {1, 2}) {
      AddInPlace(ctx, sum, LinearInputGradient(ctx, layers.dy[i], layers.w[i]));
    }
    EXPECT_TRUE(SameBits(layers.InputGradient(ctx), sum));
  }
}

// That of the joined layer, whose outputs lie beside each other.
TEST(Linear, WhereItMayBeFastTheSumIsRoundedOnce) {
  Context ctx(Device::Cpu(), 2);
  ctx.numerics = Numerics::kFast;
  const Layers layers(ctx, DType::kBF16, 19, 50);
  Tensor w = ctx.Empty({96 + 32 + 33, 50}, DType::kF32), dy = ctx.Empty({19, w.dim(0)}, w.dtype());
  int64_t at = 0;
  for (size_t i = 0; i < layers.w.size(); ++i) {
    const int64_t end = at + layers.w[i].dim(0);
    CopyTo(layers.w[i], w.Slice(at, end));
    CopyTo(layers.dy[i], dy.Columns(at, end));
    at = end;
  }
  EXPECT_TRUE(
      SameBits(layers.InputGradient(ctx), As(ctx, LinearInputGradient(ctx, dy, w), DType::kBF16)));
}

TEST(Linear, RefusesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Tensor x = ctx.Zeros({4, 8}, DType::kF32), w = ctx.Zeros({3, 9}, DType::kF32);
  EXPECT_THROW(Linear(ctx, x, w), ShapeError);
  EXPECT_THROW(Linear(ctx, x, ctx.Zeros({3, 8}, DType::kF64)), ShapeError);
  EXPECT_THROW(LinearInputGradient(ctx, x, w), ShapeError);
  EXPECT_THROW(LinearWeightGradient(ctx, x, x, ctx.Zeros({8, 9}, DType::kF32)), ShapeError);
  const Tensor fits = ctx.Zeros({3, 8}, DType::kF32), dy = ctx.Zeros({4, 3}, DType::kF32);
  EXPECT_THROW(LinearEach(ctx, x, {{fits}, {w}}), ShapeError);
  EXPECT_THROW(LinearInputGradientSum(ctx, {{dy, fits}, {dy, w}}), ShapeError);
  EXPECT_THROW(LinearInputGradientSum(ctx, {{dy, fits}, {dy.Slice(0, 3), fits}}), ShapeError);
  EXPECT_THROW(LinearInputGradientSum(ctx, {}), ShapeError);
  EXPECT_THROW(LinearWeightGradientEach(ctx, x, {{dy, ctx.ZerosLike(fits)}, {dy, w}}), ShapeError);
}

TEST(Gap, IsInfiniteWhereverANumberIsNotFinite) {
  Context ctx;
  for (int64_t place : {0, 4, 8}) {
    Tensor got = Random(ctx, {3, 3}, DType::kF64, 1);
    const Tensor want = Random(ctx, {3, 3}, DType::kF64, 1);
    EXPECT_EQ(Gap(got, want), 0);
    got.data<double>()[place] = std::numeric_limits<double>::quiet_NaN();
    EXPECT_TRUE(std::isinf(Gap(got, want))) << place;
    EXPECT_TRUE(std::isinf(Gap(want, got))) << place;
  }
}

}  // namespace
}  // namespace hone::kernels
