// emulated: all
#include "kernels/swiglu/swiglu.h"

#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

std::vector<double> Reference(const Tensor& gate, const Tensor& up) {
  std::vector<double> g = runtime::ToDoubles(gate), u = runtime::ToDoubles(up);
  for (size_t i = 0; i < g.size(); ++i) g[i] = g[i] / (1 + std::exp(-g[i])) * u[i];
  return g;
}

struct Outcome {
  Tensor h, dgate, dup;
};
// On copies: the operands stay.
Outcome Backward(Context& ctx, const Tensor& dh, const Tensor& gate, const Tensor& up) {
  Outcome o{ctx.Clone(dh), ctx.Clone(gate), ctx.Clone(up)};
  SwiGluBackward(ctx, o.h, o.dgate, o.dup);
  return o;
}

TEST(SwiGlu, MatchesTheFormula) {
  Context ctx(TestDevice());
  for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-14}, std::pair{DType::kF32, 5e-7},
                                  std::pair{DType::kBF16, 4e-3}}) {
    for (Shape shape : {Shape{5, 37}, Shape{3, 4104}}) {
      Tensor gate = Random(ctx, shape, dtype, 1, 4.0), up = Random(ctx, shape, dtype, 2);
      ExpectClose(SwiGlu(ctx, gate, up), Reference(gate, up), tolerance, "h");
      Tensor part = gate.Columns(3, 30), rest = up.Columns(8, 35);
      ExpectClose(SwiGlu(ctx, part, rest), Reference(part, rest), tolerance, "h of views");
    }
  }
}

TEST(SwiGlu, StaysFiniteWhereTheExponentialOverflows) {
  Context ctx(TestDevice());
  Tensor gate = Make(ctx, {1, 4}, {-200, 200, -88.5, 0}, DType::kF32);
  Tensor up = Make(ctx, {1, 4}, {1, 1, 1, 1}, DType::kF32);
  std::vector<double> h = runtime::ToDoubles(SwiGlu(ctx, gate, up));
  EXPECT_EQ(h[0], 0);
  EXPECT_EQ(h[1], 200);
  EXPECT_NEAR(h[2], 0, 1e-30);
  EXPECT_EQ(h[3], 0);
  auto [again, dgate, dup] = Backward(ctx, up, gate, up);
  EXPECT_EQ(runtime::ToDoubles(again), h);
  EXPECT_EQ(runtime::ToDoubles(dgate)[0], 0);
  EXPECT_EQ(runtime::ToDoubles(dgate)[1], 1);
  EXPECT_EQ(runtime::ToDoubles(dup)[0], 0);
}

TEST(SwiGlu, BackwardMatchesFiniteDifferences) {
  Context ctx(TestDevice());
  Tensor gate = Random(ctx, {3, 19}, DType::kF64, 1, 2.0),
         up = Random(ctx, {3, 19}, DType::kF64, 2);
  Tensor dh = Random(ctx, {3, 19}, DType::kF64, 3);
  auto [h, dgate, dup] = Backward(ctx, dh, gate, up);
  auto loss = [&] { return WeightedSum(SwiGlu(ctx, gate, up), dh); };
  ExpectClose(dgate, NumericGradient(gate, loss), 1e-8, "dgate");
  ExpectClose(dup, NumericGradient(up, loss), 1e-8, "dup");
}

TEST(SwiGlu, BackwardInLowPrecisionMatchesDouble) {
  Context ctx(TestDevice());
  for (auto [dtype, tolerance] : {std::pair{DType::kF32, 1e-6}, std::pair{DType::kBF16, 8e-3}}) {
    Tensor gate = Random(ctx, {4, 650}, dtype, 1), up = Random(ctx, {4, 650}, dtype, 2);
    Tensor dh = Random(ctx, {4, 650}, dtype, 3);
    auto wide = [&](const Tensor& t) {
      return Make(ctx, t.shape(), runtime::ToDoubles(t), DType::kF64);
    };
    auto [h, dgate, dup] = Backward(ctx, dh, gate, up);
    auto [h64, dgate64, dup64] = Backward(ctx, wide(dh), wide(gate), wide(up));
    ExpectSameBits(h, SwiGlu(ctx, gate, up), "h");
    ExpectClose(dgate, dgate64, tolerance, "dgate");
    ExpectClose(dup, dup64, tolerance, "dup");
  }
}

TEST(SwiGlu, ARowsBitsAreItsOwn) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  Tensor gate = Random(one, {900, 45}, DType::kF32, 1), up = Random(one, {900, 45}, DType::kF32, 2);
  Tensor h = SwiGlu(one, gate, up);
  auto [again, dgate, dup] = Backward(one, h, gate, up);
  ExpectSameBits(again, h, "h made by backward");
  ExpectSameBits(SwiGlu(two, gate, up), h, "h on two threads");
  auto [again2, dgate2, dup2] = Backward(two, h, gate, up);
  ExpectSameBits(again2, h, "h made by backward on two threads");
  ExpectSameBits(dgate2, dgate, "dgate on two threads");
  ExpectSameBits(dup2, dup, "dup on two threads");
  // Element i of a row has the same bits in a row of one element: no different tail.
  for (int64_t i : {0, 15, 31, 44}) {
    Tensor alone =
        SwiGlu(one, gate.Columns(i, i + 1).Slice(3, 4), up.Columns(i, i + 1).Slice(3, 4));
    ExpectSameBits(alone, h.Columns(i, i + 1).Slice(3, 4), fmt::format("element {}", i));
  }
}

TEST(SwiGlu, AcceptsNoRowsAndNamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Tensor none = ctx.Empty({0, 6}, DType::kF32), gate = ctx.Zeros({2, 6}, DType::kF32);
  EXPECT_EQ(SwiGlu(ctx, none, none).shape(), (Shape{0, 6}));
  ExpectThrows<ShapeError>(
      [&] {
        SwiGlu(ctx, gate, ctx.Zeros({2, 7}, DType::kF32));
      },
      {"[swiglu]", "up", "[2, 7]", "[2, 6]"});
  ExpectThrows<ShapeError>(
      [&] {
        SwiGlu(ctx, gate, ctx.Zeros({2, 6}, DType::kBF16));
      },
      {"[swiglu]", "up", "bf16", "f32"});
  ExpectThrows<ShapeError>([&] { SwiGluBackward(ctx, none, gate, gate); },
                           {"[swiglu]", "dh", "[0, 6]", "[2, 6]"});
}

}  // namespace
}  // namespace hone::kernels::testing
