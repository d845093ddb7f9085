// emulated: all
// timeout: 300
#include "kernels/sampling/sampling.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/linear/linear.h"
#include "kernels/token_logprob/token_logprob.h"
#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

Tensor Row(Context& ctx, const std::vector<double>& logits, DType dtype = DType::kF32) {
  return Make(ctx, {1, static_cast<int64_t>(logits.size())}, logits, dtype);
}

SampledToken One(Context& ctx, const Tensor& logits, SamplingParams params, double uniform) {
  return Sample(ctx, logits, std::vector{params}, std::vector{uniform})[0];
}

// An emulated GPU takes its time.
int Draws(int on_cpu) { return TestDevice().is_cpu() ? on_cpu : on_cpu / 333; }
const int kDraws = Draws(20000);
const double kShareBound = 4.0 / kDraws;

// How often each token comes out over an even grid of draws.
std::map<int32_t, double> Shares(Context& ctx, const Tensor& logits, SamplingParams params,
                                 int draws = kDraws) {
  std::map<int32_t, double> share;
  for (int i = 0; i < draws; ++i) {
    share[One(ctx, logits, params, (i + 0.5) / draws).token] += 1.0 / draws;
  }
  return share;
}

std::vector<double> Softmax(const std::vector<double>& logits, double temperature) {
  std::vector<double> p;
  double max = *std::max_element(logits.begin(), logits.end()), sum = 0;
  for (double z : logits) sum += p.emplace_back(std::exp((z - max) / temperature));
  for (double& v : p) v /= sum;
  return p;
}

const std::vector<double> kLogits = {0.3, -1.2, 2.0, 0.9, -0.4, 1.1, -3.0};

TEST(Sampling, DrawsFromTheSoftmax) {
  Context ctx(TestDevice());
  for (double temperature : {1.0, 0.5, 2.0}) {
    std::vector<double> p = Softmax(kLogits, temperature);
    auto share = Shares(ctx, Row(ctx, kLogits), {temperature, 1.0, 0});
    for (size_t v = 0; v < p.size(); ++v) EXPECT_NEAR(share[v], p[v], kShareBound) << v;
  }
}

TEST(Sampling, InvertsTheDistributionInTokenOrder) {
  Context ctx(TestDevice());
  std::vector<double> p = Softmax(kLogits, 1.0);
  double below = 0;
  for (size_t v = 0; v < p.size(); ++v) {
    EXPECT_EQ(One(ctx, Row(ctx, kLogits), {}, below + 1e-5).token, static_cast<int32_t>(v));
    below += p[v];
    EXPECT_EQ(One(ctx, Row(ctx, kLogits), {}, below - 1e-5).token, static_cast<int32_t>(v));
  }
  EXPECT_EQ(One(ctx, Row(ctx, kLogits), {}, 0.0).token, 0);
  EXPECT_EQ(One(ctx, Row(ctx, kLogits), {}, 1.0 - 1e-16).token, 6);
}

TEST(Sampling, NeverDrawsATokenWithoutProbability) {
  Context ctx(TestDevice());
  Tensor logits = Row(ctx, {-500, 1, -500, 2, -500});
  for (double uniform : {0.0, 0.25, 0.5, 0.9999999999999999}) {
    int32_t token = One(ctx, logits, {}, uniform).token;
    EXPECT_TRUE(token == 1 || token == 3) << token << " at " << uniform;
  }
}

TEST(Sampling, GreedyTakesTheLowestOfTheBest) {
  Context ctx(TestDevice());
  Tensor logits = Row(ctx, {0.5, 3, -1, 3, 3});
  SampledToken token = One(ctx, logits, {0.0, 1.0, 0}, 0.99);
  EXPECT_EQ(token.token, 1);
  EXPECT_NEAR(token.logp, std::log(Softmax({0.5, 3, -1, 3, 3}, 1.0)[1]), 1e-6);
}

TEST(Sampling, TopKAndTopPRestrictTheDraw) {
  Context ctx(TestDevice());
  struct Case {
    SamplingParams params;
    std::vector<int32_t> kept;
  };
  // Descending: 2 (.42), 5 (.17), 3 (.14), 0 (.077) … of kLogits at temperature 1.
  for (const Case& c :
       {Case{{1.0, 1.0, 2}, {2, 5}}, Case{{1.0, 1.0, 1}, {2}}, Case{{1.0, 0.6, 0}, {2, 5}},
        Case{{1.0, 0.01, 0}, {2}}, Case{{1.0, 1.0, 100}, {0, 1, 2, 3, 4, 5, 6}},
        Case{{1.0, 0.75, 3}, {2, 5}}, Case{{0.5, 0.95, 3}, {2, 3, 5}}}) {
    std::vector<double> p = Softmax(kLogits, c.params.temperature);
    double total = 0;
    for (int32_t v : c.kept) total += p[v];
    auto share = Shares(ctx, Row(ctx, kLogits), c.params);
    if (TestDevice().is_cpu()) {  // enough draws to meet the least likely token
      EXPECT_EQ(share.size(), c.kept.size()) << c.params.top_k << " " << c.params.top_p;
    }
    EXPECT_LE(share.size(), c.kept.size()) << c.params.top_k << " " << c.params.top_p;
    for (int32_t v : c.kept) EXPECT_NEAR(share[v], p[v] / total, kShareBound) << v;
  }
}

// A flat distribution over many tokens needs a nucleus of most of them.
TEST(Sampling, TopPKeepsALargeNucleus) {
  Context ctx(TestDevice());
  int64_t vocab = 1000;
  std::vector<double> logits;
  for (int64_t v = 0; v < vocab; ++v) logits.push_back(1e-3 * static_cast<double>(v * 7 % vocab));
  std::vector<double> p = Softmax(logits, 1.0), sorted = p;
  std::sort(sorted.rbegin(), sorted.rend());
  double sum = 0;
  size_t kept = 0;
  while (sum < 0.9) sum += sorted[kept++];
  auto share = Shares(ctx, Row(ctx, logits), {1.0, 0.9, 0}, Draws(4000));
  if (TestDevice().is_cpu()) {
    EXPECT_EQ(share.size(), kept);
  }
  for (auto [v, s] : share) EXPECT_GE(p[v], sorted[kept - 1] * (1 - 1e-9)) << v;
}

TEST(Sampling, TopKBreaksTiesByTheLowerId) {
  Context ctx(TestDevice());
  auto share = Shares(ctx, Row(ctx, {1, 2, 1, 1, 2}), {1.0, 1.0, 3});
  EXPECT_EQ(share.size(), 3u);
  EXPECT_TRUE(share.count(0) && share.count(1) && share.count(4));
}

// Of bf16 logits many are equal, of rounded ones most, so that cuts go through ties.
TEST(Sampling, EveryDeviceDrawsTheSameTokens) {
  Context ctx(TestDevice()), cpu;
  int64_t rows = TestDevice().is_cpu() ? 8 : 3;
  for (int64_t vocab : {40, 1003, 5000}) {
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
      std::vector<double> values = runtime::ToDoubles(Random(cpu, {rows, vocab}, dtype, 1, 2.0));
      if (vocab == 40) {
        for (double& z : values) z = std::round(z);
      }
      Tensor host = Make(cpu, {rows, vocab}, values, dtype), logits = OnDevice(ctx, host);
      RandomStream stream({static_cast<uint64_t>(vocab)});
      int64_t draw = 0;
      for (SamplingParams params :
           {SamplingParams{1.0, 1.0, 0}, SamplingParams{0.7, 1.0, 0}, SamplingParams{1.0, 0.9, 0},
            SamplingParams{1.3, 1.0, 20}, SamplingParams{0.8, 0.5, 37}, SamplingParams{0.0, 1.0, 0},
            SamplingParams{1.0, 0.999, 1}, SamplingParams{3.0, 1.0, 11},
            SamplingParams{3.0, 0.4, 0}, SamplingParams{3.0, 0.7, 19}}) {
        std::vector<SamplingParams> params_B(rows, params);
        std::vector<double> uniform_B;
        for (int64_t b = 0; b < rows; ++b) uniform_B.push_back(stream.Uniform(draw++));
        uniform_B[0] = 0, uniform_B[1] = 0x1.fffffffffffffp-1;
        std::vector<SampledToken> want = Sample(cpu, host, params_B, uniform_B);
        std::vector<SampledToken> got = Sample(ctx, logits, params_B, uniform_B);
        for (int64_t b = 0; b < rows; ++b) {
          EXPECT_EQ(got[b].token, want[b].token) << vocab << " " << draw << " row " << b;
          EXPECT_NEAR(got[b].logp, want[b].logp, 2e-6 * std::abs(want[b].logp) + 1e-6);
        }
      }
    }
  }
}

TEST(Sampling, LogpIsOfTheWholeDistribution) {
  Context ctx(TestDevice());
  SampledToken token = One(ctx, Row(ctx, kLogits), {0.7, 0.3, 2}, 0.5);
  EXPECT_NEAR(token.logp, std::log(Softmax(kLogits, 0.7)[token.token]), 1e-6);
}

// The log-probability recorded at sampling is the learner's, to the bit, whatever shares the batch.
TEST(Sampling, LogpHasTheBitsOfTokenLogprobAndCrossEntropy) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  int64_t rows = TestDevice().is_cpu() ? 65 : 17, dim = 37, vocab = 1003;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Tensor x = Random(one, {rows, dim}, dtype, 1), w = Random(one, {vocab, dim}, dtype, 2, 0.5);
    Tensor logits = Linear(one, x, w);
    RandomStream stream({9});
    std::vector<double> uniform;
    for (int64_t b = 0; b < rows; ++b) uniform.push_back(stream.Uniform(b));
    for (double temperature : {1.0, 0.7, 0.0}) {
      std::vector<SamplingParams> params(rows, {temperature, 0.95, 50});
      std::vector<SampledToken> drawn = Sample(two, logits, params, uniform);
      std::vector<int32_t> target;
      for (const SampledToken& t : drawn) target.push_back(t.token);
      std::vector<float> logp = runtime::ToVector<float>(
          TokenLogprob(one, x, w, target, temperature == 0 ? 1.0 : temperature, false).logp_T);
      std::vector<float> ce = runtime::ToVector<float>(
          CrossEntropy(one, x, w, target, std::vector<float>(rows, 1.0f), nullptr).logp_T);
      for (int64_t b = 0; b < rows; ++b) {
        EXPECT_EQ(drawn[b].logp, logp[b]) << b;
        if (temperature != 0.7) {
          EXPECT_EQ(drawn[b].logp, ce[b]) << b;
        }
        SampledToken alone = One(one, Linear(one, x.Slice(b, b + 1), w), params[b], uniform[b]);
        EXPECT_EQ(alone.token, drawn[b].token) << b;
        EXPECT_EQ(alone.logp, drawn[b].logp) << b;
      }
    }
  }
}

TEST(Sampling, NamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Tensor logits = Row(ctx, kLogits);
  ExpectThrows<ShapeError>(
      [&] {
        One(ctx, logits, {-1.0, 1.0, 0}, 0);
      },
      {"[sampling]", "temperature -1"});
  for (double temperature : {1e-40, 1e300}) {  // neither it nor a logit over it would fit f32
    ExpectThrows<ShapeError>(
        [&] {
          One(ctx, logits, {temperature, 1.0, 0}, 0);
        },
        {"[sampling]", "temperature", "[1e-06, 1000000]"});
  }
  ExpectThrows<ShapeError>([&] { One(ctx, logits, {1.0, 0.0, 0}, 0); }, {"[sampling]", "top_p 0"});
  ExpectThrows<ShapeError>(
      [&] {
        One(ctx, logits, {1.0, 1.5, 0}, 0);
      },
      {"[sampling]", "top_p 1.5"});
  ExpectThrows<ShapeError>(
      [&] {
        One(ctx, logits, {1.0, 1.0, -2}, 0);
      },
      {"[sampling]", "top_k -2"});
  ExpectThrows<ShapeError>([&] { One(ctx, logits, {}, 1.0); }, {"[sampling]", "draw 1"});
  ExpectThrows<ShapeError>([&] { Sample(ctx, logits, {}, {}); },
                           {"[sampling]", "0 parameters", "1 rows"});
  ExpectThrows<Error>(
      [&] {
        One(ctx, Row(ctx, {1, std::nan(""), 2}), {1.0, 0.5, 0}, 0.1);
      },
      {"[sampling]", "NaN"});
  EXPECT_TRUE(Sample(ctx, ctx.Empty({0, 7}, DType::kF32), {}, {}).empty());
}

}  // namespace
}  // namespace hone::kernels::testing
