// emulated: all
#include "kernels/adamw/adamw.h"

#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

struct State {
  State(Context& ctx, const std::vector<double>& start, DType master, DType moments) {
    int64_t n = static_cast<int64_t>(start.size());
    tensor.master = Make(ctx, {n}, start, master);
    tensor.gradient = ctx.Zeros({n}, master);
    tensor.exp_avg = ctx.Zeros({n}, moments);
    tensor.exp_avg_sq = ctx.Zeros({n}, moments);
  }
  AdamWTensor tensor;
};

AdamWStep StepOf(const nlohmann::json& c, int64_t step) {
  AdamWStep s;
  s.lr = c["lr"];
  s.beta1 = c["beta1"];
  s.beta2 = c["beta2"];
  s.eps = c["eps"];
  s.weight_decay = c["weight_decay"];
  s.step = step;
  return s;
}

TEST(AdamW, EqualsTorchOverFiveSteps) {
  Context ctx(TestDevice());
  nlohmann::json c = Fixture("adamw");
  for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-14}, std::pair{DType::kF32, 5e-7}}) {
    for (bool decay : {true, false}) {
      State state(ctx, c["start"], dtype, dtype);
      state.tensor.decay = decay;
      for (int64_t step = 1; step <= 5; ++step) {
        CopyTo(Make(ctx, {7}, c["gradients"][step - 1], dtype), state.tensor.gradient);
        AdamW(ctx, {state.tensor}, StepOf(c, step));
        std::vector<double> want = c[decay ? "decayed" : "undecayed"][step - 1];
        ExpectClose(state.tensor.master, want, tolerance, fmt::format("step {}", step));
      }
      ExpectClose(state.tensor.exp_avg, c["exp_avg"].get<std::vector<double>>(), tolerance,
                  "exp_avg");
      ExpectClose(state.tensor.exp_avg_sq, c["exp_avg_sq"].get<std::vector<double>>(), tolerance,
                  "exp_avg_sq");
    }
  }
}

TEST(AdamW, Bf16MomentsStayNearF32) {
  Context ctx(TestDevice());
  nlohmann::json c = Fixture("adamw");
  State state(ctx, c["start"], DType::kF32, DType::kBF16);
  for (int64_t step = 1; step <= 5; ++step) {
    CopyTo(Make(ctx, {7}, c["gradients"][step - 1], DType::kF32), state.tensor.gradient);
    AdamW(ctx, {state.tensor}, StepOf(c, step));
  }
  ExpectClose(state.tensor.master, c["decayed"][4].get<std::vector<double>>(), 1e-3, "master");
  ExpectClose(state.tensor.exp_avg_sq, c["exp_avg_sq"].get<std::vector<double>>(), 2e-2,
              "exp_avg_sq");
}

// Without ε, or with one that f32 has not: √v of these gradients is 0.
TEST(AdamW, WithoutADenominatorThereIsNoUpdate) {
  Context ctx(TestDevice());
  for (double eps : {0.0, 1e-50}) {
    for (DType moments : {DType::kF32, DType::kBF16}) {
      State state(ctx, {0.5, -0.25, 2.0}, DType::kF32, moments);
      CopyTo(Make(ctx, {3}, {0.0, 1e-30, 1.0}, DType::kF32), state.tensor.gradient);
      AdamWStep step;
      step.lr = 0.125;
      step.eps = eps;
      AdamW(ctx, {state.tensor}, step);
      ExpectClose(state.tensor.master, std::vector{0.5, -0.25, 1.875}, 1e-6, "master");
    }
  }
}

TEST(AdamW, ScalesTheGradientAsItIsRead) {
  Context ctx(TestDevice());
  nlohmann::json c = Fixture("adamw");
  std::vector<double> gradient = c["gradients"][0], scaled;
  for (double g : gradient) scaled.push_back(g * 0.25);
  State a(ctx, c["start"], DType::kF64, DType::kF64), b(ctx, c["start"], DType::kF64, DType::kF64);
  CopyTo(Make(ctx, {7}, gradient, DType::kF64), a.tensor.gradient);
  CopyTo(Make(ctx, {7}, scaled, DType::kF64), b.tensor.gradient);
  AdamWStep step = StepOf(c, 1);
  AdamW(ctx, {b.tensor}, step);
  step.gradient_scale = 0.25;
  AdamW(ctx, {a.tensor}, step);
  ExpectSameBits(a.tensor.exp_avg, b.tensor.exp_avg, "exp_avg");
  ExpectSameBits(a.tensor.master, b.tensor.master, "master");
  ExpectClose(a.tensor.gradient, gradient, 0, "the gradient itself is left alone");
}

TEST(AdamW, WritesTheComputeValue) {
  Context ctx(TestDevice());
  State state(ctx, {0.1, -0.7, 3.3}, DType::kF32, DType::kF32);
  state.tensor.gradient = Make(ctx, {3}, {1, 2, -3}, DType::kF32);
  state.tensor.value = ctx.Zeros({3}, DType::kBF16);
  AdamWStep step;
  step.lr = 0.1;
  AdamW(ctx, {state.tensor}, step);
  ExpectSameBits(state.tensor.value, OnHost(state.tensor.master, DType::kBF16), "value");
  EXPECT_NEAR(runtime::ToDoubles(state.tensor.master)[0], 0.0,
              1e-6);  // the first step is lr · sign
}

TEST(AdamW, BitsDoNotDependOnHowTensorsAreSplitOrOnThreads) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  int64_t n = 50021;
  std::vector<AdamWTensor> whole(2), parts(2);
  auto fill = [&](AdamWTensor& t, DType moments) {
    t.master = Random(one, {n}, DType::kF32, 1);
    t.gradient = Random(one, {n}, DType::kF32, 2);
    t.exp_avg = Random(one, {n}, moments, 3, 0.1);
    t.exp_avg_sq = Make(one, {n}, std::vector<double>(n, 0.25), moments);
    t.value = one.Zeros({n}, DType::kBF16);
  };
  for (DType moments : {DType::kF32, DType::kBF16}) {
    AdamWTensor a, b;
    fill(a, moments);
    fill(b, moments);
    AdamWStep step;
    step.lr = 1e-3;
    step.weight_decay = 0.1;
    step.step = 4;
    step.gradient_scale = 0.3;
    AdamW(one, {a}, step);
    std::vector<AdamWTensor> split;
    for (auto [begin, end] :
         {std::pair<int64_t, int64_t>{0, 3}, {3, 17}, {17, 33333}, {33333, n}}) {
      split.push_back({b.master.Slice(begin, end), b.gradient.Slice(begin, end),
                       b.exp_avg.Slice(begin, end), b.exp_avg_sq.Slice(begin, end),
                       b.value.Slice(begin, end), true});
    }
    AdamW(two, split, step);
    ExpectSameBits(a.master, b.master, "master");
    ExpectSameBits(a.exp_avg, b.exp_avg, "exp_avg");
    ExpectSameBits(a.exp_avg_sq, b.exp_avg_sq, "exp_avg_sq");
    ExpectSameBits(a.value, b.value, "value");
  }
}

TEST(AdamW, NamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  State state(ctx, {1, 2, 3}, DType::kF32, DType::kF32);
  auto update = [&](AdamWTensor t, AdamWStep step = {}) { AdamW(ctx, {t}, step); };
  AdamWTensor t = state.tensor;
  t.gradient = ctx.Zeros({4}, DType::kF32);
  ExpectThrows<ShapeError>([&] { update(t); }, {"[adamw]", "gradient", "4", "3"});
  t = state.tensor;
  t.gradient = ctx.Zeros({3}, DType::kBF16);
  ExpectThrows<ShapeError>([&] { update(t); }, {"[adamw]", "gradient", "bf16", "f32"});
  t = state.tensor;
  t.exp_avg = t.exp_avg_sq = ctx.Zeros({3}, DType::kF64);
  ExpectThrows<ShapeError>([&] { update(t); }, {"[adamw]", "moments", "f64"});
  t = state.tensor;
  t.master = ctx.Zeros({2, 4}, DType::kF32).Columns(0, 3);
  ExpectThrows<ShapeError>([&] { update(t); }, {"[adamw]", "contiguous", "[2, 3]"});
  AdamWStep step;
  step.step = 0;
  ExpectThrows<ConfigError>([&] { update(state.tensor, step); }, {"[adamw]", "step 0"});
  step.step = 1;
  step.beta2 = 1.0;
  ExpectThrows<ConfigError>([&] { update(state.tensor, step); }, {"[adamw]", "beta2 = 1"});
}

TEST(SumOfSquares, MatchesDouble) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  for (int64_t n : {0, 1, 31, 4096, 4097, 100003}) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
      Tensor x = Random(one, {n}, dtype, 5);
      double want = WeightedSum(x, x);
      EXPECT_NEAR(SumOfSquares(one, x), want, 1e-12 * want) << n;
      EXPECT_EQ(SumOfSquares(one, x), SumOfSquares(two, x)) << "threads, " << n;
    }
  }
  std::vector<Tensor> several;
  for (int64_t n : {5, 0, 20001, 0, 1, 8192, 0}) {
    several.push_back(Random(one, {n}, DType::kF32, static_cast<uint64_t>(n)));
  }
  std::vector<double> sums = SumsOfSquares(one, several);
  for (size_t i = 0; i < several.size(); ++i) {
    EXPECT_EQ(sums[i], SumOfSquares(one, several[i])) << i;
  }
  EXPECT_TRUE(SumsOfSquares(one, {}).empty());
  // Squares that overflow f32 do not overflow here.
  Tensor large = Make(one, {2}, {1e30, 1e30}, DType::kF32);
  EXPECT_NEAR(SumOfSquares(one, large), 2e60, 1e54);
  EXPECT_EQ(SumOfSquares(one, large.Reshape({2, 1})), SumOfSquares(one, large));
}

}  // namespace
}  // namespace hone::kernels::testing
