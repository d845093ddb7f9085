// emulated: all
// timeout: 300
#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/token_logprob/token_logprob.h"
#include "runtime/token_batch.h"
#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

constexpr int32_t kNone = TokenBatch::kNoTarget;

struct Inputs {
  Inputs(Context& ctx, int64_t tokens, int64_t dim, int64_t vocab, DType dtype)
      : x(Random(ctx, {tokens, dim}, dtype, 1)), w(Random(ctx, {vocab, dim}, dtype, 2)) {
    RandomStream stream({3});
    for (int64_t t = 0; t < tokens; ++t) {
      target.push_back(t % 7 == 3 ? kNone : static_cast<int32_t>(stream.Below(vocab, t)));
      weight.push_back(t % 5 == 4 ? 0.0f : static_cast<float>(stream.Uniform(1000000 + t)));
    }
  }
  Tensor x, w;
  std::vector<int32_t> target;
  std::vector<float> weight;
};

DType AccOfDType(DType dtype) { return dtype == DType::kF64 ? dtype : DType::kF32; }

TEST(CrossEntropy, LossAndGradientsEqualTorch) {
  Context ctx(TestDevice());
  nlohmann::json c = Fixture("head");
  int64_t tokens = c["tokens"], dim = c["dim"], vocab = c["vocab"];
  std::vector<int32_t> target = c["target"];
  std::vector<float> weight = c["weight"];
  std::vector<double> want;
  for (double ce : c["ce"]) want.push_back(-ce);
  for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-13}, std::pair{DType::kF32, 2e-6}}) {
    Tensor x = Make(ctx, {tokens, dim}, c["x"], dtype), w = Make(ctx, {vocab, dim}, c["w"], dtype);
    Tensor dw = ctx.Zeros({vocab, dim}, dtype);
    CrossEntropyResult r = CrossEntropy(ctx, x, w, target, weight, &dw);
    ExpectClose(r.logp_T, want, tolerance, "logp");
    ExpectClose(r.dx_TD, c["ce_dx"].get<std::vector<double>>(), tolerance, "dx");
    ExpectClose(dw, c["ce_dw"].get<std::vector<double>>(), tolerance, "dw");
  }
}

TEST(CrossEntropy, GradientsMatchFiniteDifferences) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "compared with torch in LossAndGradientsEqualTorch";
  Context ctx(TestDevice());
  Inputs in(ctx, 9, 5, 13, DType::kF64);
  Tensor dw = ctx.Zeros(in.w.shape(), DType::kF64);
  CrossEntropyResult r = CrossEntropy(ctx, in.x, in.w, in.target, in.weight, &dw);
  auto loss = [&] {
    std::vector<double> logp =
        runtime::ToDoubles(CrossEntropy(ctx, in.x, in.w, in.target, in.weight, nullptr).logp_T);
    double sum = 0;
    for (size_t t = 0; t < logp.size(); ++t) sum -= static_cast<double>(in.weight[t]) * logp[t];
    return sum;
  };
  ExpectClose(r.dx_TD, NumericGradient(in.x, loss), 1e-8, "dx");
  ExpectClose(dw, NumericGradient(in.w, loss), 1e-8, "dw");
}

TEST(CrossEntropy, Bf16FollowsDouble) {
  Context ctx(TestDevice());
  Inputs in(ctx, 40, 24, 97, DType::kBF16);
  auto wide = [&](const Tensor& t) {
    return Make(ctx, t.shape(), runtime::ToDoubles(t), DType::kF64);
  };
  Tensor dw = ctx.Zeros(in.w.shape(), DType::kF32), dw64 = ctx.Zeros(in.w.shape(), DType::kF64);
  CrossEntropyResult r = CrossEntropy(ctx, in.x, in.w, in.target, in.weight, &dw);
  CrossEntropyResult want = CrossEntropy(ctx, wide(in.x), wide(in.w), in.target, in.weight, &dw64);
  EXPECT_EQ(r.logp_T.dtype(), DType::kF32);
  EXPECT_EQ(r.dx_TD.dtype(), DType::kBF16);
  ExpectClose(r.logp_T, want.logp_T, 5e-3, "logp");
  ExpectClose(r.dx_TD, want.dx_TD, 3e-2, "dx");
  ExpectClose(dw, dw64, 3e-2, "dw");
}

// Several blocks, an odd vocabulary, tokens without target or weight.
TEST(CrossEntropy, ManyBlocksMatchDoubleAndTokenLogprobToTheBit) {
  Context ctx(TestDevice());
  int64_t part = TestDevice().is_cpu() ? 1 : 8;
  for (auto [all, vocab] : {std::pair<int64_t, int64_t>{1100, 131}, {150, 10007}, {20, 4104}}) {
    int64_t tokens = all / part;
    Inputs in(ctx, tokens, 12, vocab, DType::kF32);
    Inputs in64(ctx, tokens, 12, vocab, DType::kF64);
    Tensor dw = ctx.Zeros(in.w.shape(), DType::kF32), dw64 = ctx.Zeros(in.w.shape(), DType::kF64);
    CrossEntropyResult r = CrossEntropy(ctx, in.x, in.w, in.target, in.weight, &dw);
    CrossEntropyResult want = CrossEntropy(ctx, in64.x, in64.w, in64.target, in64.weight, &dw64);
    ExpectClose(r.logp_T, want.logp_T, 1e-6, "logp");
    ExpectClose(r.dx_TD, want.dx_TD, 2e-5, "dx");  // one f32 chain over the vocabulary
    ExpectClose(dw, dw64, 5e-6, "dw");
    ExpectSameBits(TokenLogprob(ctx, in.x, in.w, in.target, 1.0, false).logp_T, r.logp_T,
                   "logp as token_logprob gives it");
    ExpectSameBits(CrossEntropy(ctx, in.x, in.w, in.target, in.weight, nullptr).logp_T, r.logp_T,
                   "logp without gradients");
    EXPECT_FALSE(CrossEntropy(ctx, in.x, in.w, in.target, in.weight, nullptr).dx_TD.defined());
  }
}

TEST(CrossEntropy, TokensWithoutTargetOrWeightGiveNoGradient) {
  Context ctx(TestDevice());
  Inputs in(ctx, 3, 5, 11, DType::kF32);
  in.target = {kNone, 4, 10};
  in.weight = {1.0f, 0.0f, 1.0f};
  Tensor dw = ctx.Zeros(in.w.shape(), DType::kF32);
  CrossEntropyResult r = CrossEntropy(ctx, in.x, in.w, in.target, in.weight, &dw);
  EXPECT_EQ(runtime::ToDoubles(r.logp_T)[0], 0);
  EXPECT_LT(runtime::ToDoubles(r.logp_T)[1], 0);  // weight 0 still has its logp
  for (int t : {0, 1}) {
    for (double v : runtime::ToDoubles(r.dx_TD.Slice(t, t + 1))) EXPECT_EQ(v, 0);
  }
  Tensor alone = ctx.Zeros(in.w.shape(), DType::kF32);
  CrossEntropy(ctx, in.x.Slice(2, 3), in.w, std::span(in.target).subspan(2),
               std::span(in.weight).subspan(2), &alone);
  ExpectClose(dw, alone, 1e-6, "dw is the third token's");
}

TEST(CrossEntropy, SurvivesLargeLogits) {
  Context ctx(TestDevice());
  Tensor x = Make(ctx, {1, 1}, {1000}, DType::kF32),
         w = Make(ctx, {3, 1}, {1, -1, 0.999}, DType::kF32);
  std::vector<int32_t> target = {1};
  std::vector<float> weight = {1};
  Tensor dw = ctx.Zeros({3, 1}, DType::kF32);
  CrossEntropyResult r = CrossEntropy(ctx, x, w, target, weight, &dw);
  EXPECT_NEAR(runtime::ToDoubles(r.logp_T)[0], -2000 - std::log1p(std::exp(-1.0)), 1e-3);
  EXPECT_NEAR(runtime::ToDoubles(dw)[1], -1000, 1e-3);
}

TEST(CrossEntropy, ATokensBitsAreItsOwn) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  int32_t tokens = TestDevice().is_cpu() ? 700 : 90;
  Inputs in(one, tokens, 33, 301, DType::kF32);
  Tensor dw = one.Zeros(in.w.shape(), DType::kF32), dw2 = one.Zeros(in.w.shape(), DType::kF32);
  CrossEntropyResult r = CrossEntropy(one, in.x, in.w, in.target, in.weight, &dw);
  CrossEntropyResult r2 = CrossEntropy(two, in.x, in.w, in.target, in.weight, &dw2);
  ExpectSameBits(r2.logp_T, r.logp_T, "logp on two threads");
  ExpectSameBits(r2.dx_TD, r.dx_TD, "dx on two threads");
  ExpectSameBits(dw2, dw, "dw on two threads");
  for (int64_t t : {0, 5, tokens - 1}) {
    Tensor unused = one.Zeros(in.w.shape(), DType::kF32);
    CrossEntropyResult alone =
        CrossEntropy(one, in.x.Slice(t, t + 1), in.w, std::span(in.target).subspan(t, 1),
                     std::span(in.weight).subspan(t, 1), &unused);
    ExpectSameBits(alone.logp_T, r.logp_T.Slice(t, t + 1), "logp of one token alone");
    ExpectSameBits(alone.dx_TD, r.dx_TD.Slice(t, t + 1), "dx of one token alone");
  }
}

TEST(CrossEntropy, NeverHoldsAllLogits) {
  Context ctx(TestDevice());
  bool cpu = TestDevice().is_cpu();  // a GPU takes larger blocks, and its emulation its time
  int64_t tokens = cpu ? 4096 : 2600, vocab = cpu ? 4001 : 521;
  Inputs in(ctx, tokens, 8, vocab, DType::kF32);
  Tensor dw = ctx.Zeros(in.w.shape(), DType::kF32);
  ctx.allocator()->ResetPeaks();
  int64_t before = ctx.allocator()->Usage().live_total;
  CrossEntropy(ctx, in.x, in.w, in.target, in.weight, &dw);
  EXPECT_LT(ctx.allocator()->Usage().peak_total - before, tokens * vocab * 4 / (cpu ? 8 : 2));
}

TEST(CrossEntropy, AcceptsNoTokensAndNamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Inputs in(ctx, 2, 5, 11, DType::kF32);
  Tensor dw = ctx.Zeros({11, 5}, DType::kF32);
  CrossEntropyResult none = CrossEntropy(ctx, in.x.Slice(0, 0), in.w, {}, {}, &dw);
  EXPECT_EQ(none.logp_T.shape(), (Shape{0}));
  EXPECT_EQ(none.dx_TD.shape(), (Shape{0, 5}));
  auto run = [&](const Tensor& x, std::vector<int32_t> target, std::vector<float> weight,
                 const Tensor& d) { CrossEntropy(ctx, x, in.w, target, weight, &d); };
  ExpectThrows<ShapeError>(
      [&] {
        run(in.x, {0, 11}, {1, 1}, dw);
      },
      {"[cross_entropy]", "target 11 of token 1", "[0, 11)"});
  ExpectThrows<ShapeError>(
      [&] {
        run(in.x, {0, -1}, {1, 1}, dw);
      },
      {"[cross_entropy]", "target -1"});
  ExpectThrows<ShapeError>([&] { run(in.x, {0}, {1}, dw); },
                           {"[cross_entropy]", "1 targets", "2 tokens"});
  ExpectThrows<ShapeError>(
      [&] {
        run(in.x, {0, 1}, {1}, dw);
      },
      {"[cross_entropy]", "1 weights", "2 tokens"});
  ExpectThrows<ShapeError>(
      [&] {
        run(ctx.Zeros({2, 4}, DType::kF32), {0, 1}, {1, 1}, dw);
      },
      {"[cross_entropy]", "[2, 4]", "[11, 5]"});
  ExpectThrows<ShapeError>(
      [&] {
        run(in.x, {0, 1}, {1, 1}, ctx.Zeros({11, 5}, AccOfDType(DType::kF64)));
      },
      {"[cross_entropy]", "dw", "f64", "f32"});
}

}  // namespace
}  // namespace hone::kernels::testing
