// emulated: all
// timeout: 300
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
    }
  }
  Tensor x, w;
  std::vector<int32_t> target;
};

TEST(TokenLogprob, ValuesAndGradientsEqualTorch) {
  Context ctx(TestDevice());
  nlohmann::json c = Fixture("head");
  int64_t tokens = c["tokens"], dim = c["dim"], vocab = c["vocab"];
  std::vector<int32_t> target = c["target"];
  double temperature = c["temperature"];
  for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-13}, std::pair{DType::kF32, 3e-6}}) {
    Tensor x = Make(ctx, {tokens, dim}, c["x"], dtype), w = Make(ctx, {vocab, dim}, c["w"], dtype);
    TokenLogprobResult r = TokenLogprob(ctx, x, w, target, temperature, true);
    ExpectClose(r.logp_T, c["logp"].get<std::vector<double>>(), tolerance, "logp");
    ExpectClose(r.entropy_T, c["entropy"].get<std::vector<double>>(), tolerance, "entropy");
    Tensor dw = ctx.Zeros({vocab, dim}, dtype);
    Tensor dx = TokenLogprobBackward(ctx, Make(ctx, {tokens}, c["dlogp"], dtype),
                                     Make(ctx, {tokens}, c["dentropy"], dtype), x, w, target,
                                     temperature, r, dw);
    ExpectClose(dx, c["logp_dx"].get<std::vector<double>>(), tolerance, "dx");
    ExpectClose(dw, c["logp_dw"].get<std::vector<double>>(), tolerance, "dw");
  }
}

TEST(TokenLogprob, GradientsMatchFiniteDifferences) {
  if (!TestDevice().is_cpu()) GTEST_SKIP() << "compared with torch in ValuesAndGradientsEqualTorch";
  Context ctx(TestDevice());
  for (double temperature : {1.0, 0.6}) {
    for (bool entropy : {false, true}) {
      Inputs in(ctx, 8, 5, 13, DType::kF64);
      Tensor dlogp = Random(ctx, {8}, DType::kF64, 4);
      Tensor dentropy = entropy ? Random(ctx, {8}, DType::kF64, 5) : Tensor();
      TokenLogprobResult saved = TokenLogprob(ctx, in.x, in.w, in.target, temperature, entropy);
      Tensor dw = ctx.Zeros(in.w.shape(), DType::kF64);
      Tensor dx =
          TokenLogprobBackward(ctx, dlogp, dentropy, in.x, in.w, in.target, temperature, saved, dw);
      auto loss = [&] {
        TokenLogprobResult r = TokenLogprob(ctx, in.x, in.w, in.target, temperature, entropy);
        return WeightedSum(r.logp_T, dlogp) + (entropy ? WeightedSum(r.entropy_T, dentropy) : 0);
      };
      ExpectClose(dx, NumericGradient(in.x, loss), 1e-8, "dx");
      ExpectClose(dw, NumericGradient(in.w, loss), 1e-8, "dw");
    }
  }
}

TEST(TokenLogprob, ManyBlocksMatchDouble) {
  Context ctx(TestDevice());
  int64_t part = TestDevice().is_cpu() ? 1 : 8;
  for (auto [all, vocab] : {std::pair<int64_t, int64_t>{1100, 131}, {150, 10007}, {20, 4104}}) {
    int64_t tokens = all / part;
    Inputs in(ctx, tokens, 12, vocab, DType::kF32), in64(ctx, tokens, 12, vocab, DType::kF64);
    TokenLogprobResult r = TokenLogprob(ctx, in.x, in.w, in.target, 0.8, true);
    TokenLogprobResult want = TokenLogprob(ctx, in64.x, in64.w, in64.target, 0.8, true);
    ExpectClose(r.logp_T, want.logp_T, 1e-6, "logp");
    ExpectClose(r.entropy_T, want.entropy_T, 2e-6, "entropy");
    ExpectClose(r.lse_T, want.lse_T, 1e-6, "lse");
    Tensor dlogp = Random(ctx, {tokens}, DType::kF32, 4),
           dentropy = Random(ctx, {tokens}, DType::kF32, 5);
    auto wide = [&](const Tensor& t) {
      return Make(ctx, t.shape(), runtime::ToDoubles(t), DType::kF64);
    };
    Tensor dw = ctx.Zeros(in.w.shape(), DType::kF32), dw64 = ctx.Zeros(in.w.shape(), DType::kF64);
    Tensor dx = TokenLogprobBackward(ctx, dlogp, dentropy, in.x, in.w, in.target, 0.8, r, dw);
    Tensor dx64 = TokenLogprobBackward(ctx, wide(dlogp), wide(dentropy), in64.x, in64.w,
                                       in64.target, 0.8, want, dw64);
    ExpectClose(dx, dx64, 1e-5, "dx");
    ExpectClose(dw, dw64, 1e-5, "dw");
  }
}

TEST(TokenLogprob, Bf16FollowsDouble) {
  Context ctx(TestDevice());
  Inputs in(ctx, 40, 24, 97, DType::kBF16);
  auto wide = [&](const Tensor& t) {
    return Make(ctx, t.shape(), runtime::ToDoubles(t), DType::kF64);
  };
  TokenLogprobResult r = TokenLogprob(ctx, in.x, in.w, in.target, 1.0, true);
  TokenLogprobResult want = TokenLogprob(ctx, wide(in.x), wide(in.w), in.target, 1.0, true);
  EXPECT_EQ(r.logp_T.dtype(), DType::kF32);
  ExpectClose(r.logp_T, want.logp_T, 5e-3, "logp");
  ExpectClose(r.entropy_T, want.entropy_T, 3e-2, "entropy");
}

// A token whose log-probability does not fit f32 has no part in the entropy.
TEST(TokenLogprob, LogitsFurtherApartThanTheGreatestNumber) {
  Context ctx(TestDevice());
  Tensor x = Make(ctx, {1, 1}, {1}, DType::kF32);
  Tensor w = Make(ctx, {3, 1}, {2e38, -2e38, 0}, DType::kF32);
  TokenLogprobResult r = TokenLogprob(ctx, x, w, std::vector<int32_t>{0}, 1.0, true);
  EXPECT_EQ(runtime::ToDoubles(r.logp_T), std::vector{0.0});
  EXPECT_EQ(runtime::ToDoubles(r.entropy_T), std::vector{0.0});
  Tensor dw = ctx.Zeros({3, 1}, DType::kF32);
  TokenLogprobBackward(ctx, Make(ctx, {1}, {0.5}, DType::kF32), Make(ctx, {1}, {0.25}, DType::kF32),
                       x, w, std::vector<int32_t>{0}, 1.0, r, dw);
  EXPECT_EQ(runtime::ToDoubles(dw), std::vector(3, 0.0));
}

TEST(TokenLogprob, ATokenWithoutTargetGivesZero) {
  Context ctx(TestDevice());
  Inputs in(ctx, 2, 5, 11, DType::kF32);
  in.target = {kNone, 3};
  TokenLogprobResult r = TokenLogprob(ctx, in.x, in.w, in.target, 1.0, true);
  EXPECT_EQ(runtime::ToDoubles(r.logp_T)[0], 0);
  EXPECT_EQ(runtime::ToDoubles(r.entropy_T)[0], 0);
  Tensor ones = Make(ctx, {2}, {1, 1}, DType::kF32), dw = ctx.Zeros({11, 5}, DType::kF32);
  Tensor dx = TokenLogprobBackward(ctx, ones, ones, in.x, in.w, in.target, 1.0, r, dw);
  for (double v : runtime::ToDoubles(dx.Slice(0, 1))) EXPECT_EQ(v, 0);
  EXPECT_NE(runtime::ToDoubles(dx.Slice(1, 2))[0], 0);
}

TEST(TokenLogprob, ATokensBitsAreItsOwn) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  int64_t tokens = TestDevice().is_cpu() ? 700 : 90;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Inputs in(one, tokens, 33, 301, dtype);
    TokenLogprobResult r = TokenLogprob(one, in.x, in.w, in.target, 0.9, true);
    TokenLogprobResult r2 = TokenLogprob(two, in.x, in.w, in.target, 0.9, true);
    ExpectSameBits(r2.logp_T, r.logp_T, "logp on two threads");
    ExpectSameBits(r2.entropy_T, r.entropy_T, "entropy on two threads");
    Tensor dlogp = Random(one, {tokens}, DType::kF32, 4);
    Tensor dw = one.Zeros(in.w.shape(), DType::kF32), dw2 = one.Zeros(in.w.shape(), DType::kF32);
    Tensor dx = TokenLogprobBackward(one, dlogp, dlogp, in.x, in.w, in.target, 0.9, r, dw);
    Tensor dx2 = TokenLogprobBackward(two, dlogp, dlogp, in.x, in.w, in.target, 0.9, r, dw2);
    ExpectSameBits(dx2, dx, "dx on two threads");
    ExpectSameBits(dw2, dw, "dw on two threads");
    for (int64_t begin : {int64_t{0}, int64_t{5}, tokens - 7}) {
      for (int64_t count : {1, 7}) {
        TokenLogprobResult part =
            TokenLogprob(one, in.x.Slice(begin, begin + count), in.w,
                         std::span(in.target).subspan(begin, count), 0.9, true);
        ExpectSameBits(part.logp_T, r.logp_T.Slice(begin, begin + count), "logp of a part");
        ExpectSameBits(part.entropy_T, r.entropy_T.Slice(begin, begin + count),
                       "entropy of a part");
      }
    }
  }
}

TEST(TokenLogprob, AcceptsNoTokensAndNamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Inputs in(ctx, 2, 5, 11, DType::kF32);
  TokenLogprobResult none = TokenLogprob(ctx, in.x.Slice(0, 0), in.w, {}, 1.0, true);
  EXPECT_EQ(none.logp_T.shape(), (Shape{0}));
  auto run = [&](std::vector<int32_t> target, double temperature) {
    return TokenLogprob(ctx, in.x, in.w, target, temperature, false);
  };
  ExpectThrows<ShapeError>(
      [&] {
        run({0, 11}, 1);
      },
      {"[token_logprob]", "target 11 of token 1", "[0, 11)"});
  ExpectThrows<ShapeError>([&] { run({0}, 1); }, {"[token_logprob]", "1 targets", "2 tokens"});
  ExpectThrows<ShapeError>([&] { run({0, 1}, 0); }, {"[token_logprob]", "temperature 0"});
  ExpectThrows<ShapeError>(
      [&] {
        TokenLogprob(ctx, in.x, ctx.Zeros({11, 4}, DType::kF32), in.target, 1, false);
      },
      {"[token_logprob]", "[2, 5]", "[11, 4]"});
  TokenLogprobResult saved = run({0, 1}, 1);
  std::vector<int32_t> target = {0, 1};
  Tensor dlogp = ctx.Zeros({2}, DType::kF32), dw = ctx.Zeros({11, 5}, DType::kF32);
  auto backward = [&](const Tensor& dl, const Tensor& dh, const Tensor& d) {
    TokenLogprobBackward(ctx, dl, dh, in.x, in.w, target, 1, saved, d);
  };
  ExpectThrows<ShapeError>([&] { backward(ctx.Zeros({3}, DType::kF32), Tensor(), dw); },
                           {"[token_logprob]", "dlogp", "[3]", "[2]"});
  ExpectThrows<ShapeError>([&] { backward(dlogp, dlogp, dw); },
                           {"[token_logprob]", "saved entropy", "undefined"});
  ExpectThrows<ShapeError>(
      [&] {
        backward(dlogp, Tensor(), ctx.Zeros({10, 5}, DType::kF32));
      },
      {"[token_logprob]", "dw", "[10, 5]", "[11, 5]"});
}

}  // namespace
}  // namespace hone::kernels::testing
