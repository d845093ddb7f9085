// Policy losses and their gradients against PyTorch's autograd (tests/fixtures/policy_loss.json)
// and against finite differences.
#include "rl/policy_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "tests/read_json.h"

namespace hone::rl {
namespace {

using nlohmann::json;

const json& Fixture() {
  static const json fixture = ReadJson(HONE_SOURCE_DIR "/tests/fixtures/policy_loss.json");
  return fixture;
}

TokenBatch FixtureBatch() {
  const json& f = Fixture();
  TokenBatch batch;
  size_t n = f["logp"].size();
  batch.token_T.assign(n, 1);
  batch.target_T.assign(n, 1);
  batch.position_T.assign(n, 0);
  batch.cu_seqlens = {0};
  for (int length : f["lengths"]) batch.cu_seqlens.push_back(batch.cu_seqlens.back() + length);
  batch.loss_weight_T = f["weight"].get<std::vector<float>>();
  batch.old_logp_T = f["old"].get<std::vector<float>>();
  batch.sampled_logp_T = f["sampled"].get<std::vector<float>>();
  batch.reference_logp_T = f["reference"].get<std::vector<float>>();
  batch.advantage_T = f["advantage"].get<std::vector<float>>();
  return batch;
}

PolicyLossConfig ConfigOf(const json& c) {
  PolicyLossConfig config;
  config.ratio = c["ratio"] == "sequence" ? PolicyLossConfig::Ratio::kSequence
                                          : PolicyLossConfig::Ratio::kToken;
  config.clip_low = c["low"];
  config.clip_high = c["high"];
  config.kl_coefficient = c["beta"];
  config.entropy_coefficient = c["entropy_coefficient"];
  config.importance_cap = c["cap"];
  return config;
}

class PolicyLossCase : public testing::TestWithParam<size_t> {
 protected:
  PolicyLossCase()
      : case_(Fixture()["cases"][GetParam()]),
        batch_(FixtureBatch()),
        logp_(Fixture()["logp"].get<std::vector<double>>()),
        entropy_(Fixture()["entropy"].get<std::vector<double>>()) {}

  Tensor Of(std::vector<double>& values) {
    return ctx_.Clone(
        Tensor(values.data(), {static_cast<int64_t>(values.size())}, DType::kF64, Device::Cpu()));
  }
  parallel::LossFunction::Result Evaluate() {
    parallel::HeadOutput out;
    out.logp_T = Of(logp_);
    out.entropy_T = Of(entropy_);
    return PolicyLoss(ConfigOf(case_)).Evaluate(ctx_, batch_, out);
  }

  const json& case_;
  Context ctx_;
  TokenBatch batch_;
  std::vector<double> logp_, entropy_;
};

std::vector<double> Gradient(const Tensor& t, size_t n) {
  return t.defined() ? runtime::ToDoubles(t) : std::vector<double>(n, 0.0);
}

TEST_P(PolicyLossCase, EqualsPyTorch) {
  auto result = Evaluate();
  EXPECT_NEAR(result.loss, case_["loss"].get<double>(), 1e-12);
  auto dlogp = Gradient(result.gradient.dlogp_T, logp_.size());
  auto dentropy = Gradient(result.gradient.dentropy_T, logp_.size());
  for (size_t t = 0; t < logp_.size(); ++t) {
    EXPECT_NEAR(dlogp[t], case_["dlogp"][t].get<double>(), 1e-12) << "token " << t;
    EXPECT_NEAR(dentropy[t], case_["dentropy"][t].get<double>(), 1e-12) << "token " << t;
  }
}

TEST_P(PolicyLossCase, GradientIsTheFiniteDifference) {
  auto dlogp = Gradient(Evaluate().gradient.dlogp_T, logp_.size());
  for (size_t t = 0; t < logp_.size(); ++t) {
    double middle = logp_[t];
    const double h = 1e-6;
    logp_[t] = middle + h;
    double up = Evaluate().loss;
    logp_[t] = middle - h;
    double down = Evaluate().loss;
    logp_[t] = middle;
    EXPECT_NEAR(dlogp[t], (up - down) / (2 * h), 1e-8) << "token " << t;
  }
}

// Every setting must be told apart by some token: clipped and not, corrected and not.
TEST_P(PolicyLossCase, Metrics) {
  auto m = Evaluate().metrics;
  PolicyLossConfig config = ConfigOf(case_);
  double weight = 0, counted = 0, gap = 0, largest = 0, entropy = 0;
  for (size_t t = 0; t < logp_.size(); ++t) {
    double w = batch_.loss_weight_T[t];
    if (w == 0) continue;
    weight += w;
    ++counted;
    const double apart = std::abs(logp_[t] - double{batch_.sampled_logp_T[t]});
    gap += apart;
    largest = std::max(largest, apart);
    entropy += w * entropy_[t];
  }
  EXPECT_EQ(m["tokens"], counted);
  EXPECT_NEAR(m["logprob_gap"], gap, 1e-12);
  EXPECT_NEAR(m["largest_logprob_gap"], largest, 1e-12);
  EXPECT_NEAR(m["entropy"], entropy, 1e-12);
  if (config.importance_cap == 0) {
    EXPECT_NEAR(m["importance_weight"], weight, 1e-12);
  } else {
    EXPECT_LT(m["importance_weight"], 1.2 * weight);
  }
  if (config.clip_low < 1) {
    EXPECT_GT(m["clip_fraction"], 0);
    EXPECT_LT(m["clip_fraction"], weight);
  }
}

INSTANTIATE_TEST_SUITE_P(, PolicyLossCase, testing::Range<size_t>(0, Fixture()["cases"].size()),
                         [](const testing::TestParamInfo<size_t>& info) {
                           return Fixture()["cases"][info.param]["name"].get<std::string>();
                         });

// With old = sampled = current, as in the first step after sampling on one set of weights: the
// ratio is exactly 1, nothing is clipped, the KL to an equal reference exactly 0.
TEST(PolicyLoss, OnPolicyIsExact) {
  TokenBatch batch = FixtureBatch();
  std::vector<float> logp = batch.old_logp_T;
  batch.sampled_logp_T = batch.reference_logp_T = logp;
  Context ctx;
  parallel::HeadOutput out;
  out.logp_T = ctx.Clone(
      Tensor(logp.data(), {static_cast<int64_t>(logp.size())}, DType::kF32, Device::Cpu()));
  auto result = PolicyLoss({}).Evaluate(ctx, batch, out);
  EXPECT_EQ(result.metrics["kl"], 0);
  EXPECT_EQ(result.metrics["clip_fraction"], 0);
  EXPECT_EQ(result.metrics["logprob_gap"], 0);
  auto dlogp = runtime::ToDoubles(result.gradient.dlogp_T);
  for (size_t t = 0; t < logp.size(); ++t) {
    EXPECT_EQ(dlogp[t], -batch.loss_weight_T[t] * batch.advantage_T[t]) << t;
  }
}

// Whatever its ratio is, also infinity.
TEST(PolicyLoss, ATokenWithoutAdvantageHasNoPolicyLoss) {
  TokenBatch batch = FixtureBatch();
  std::vector<float> logp(batch.old_logp_T.size(), -1.0f);
  std::fill(batch.advantage_T.begin(), batch.advantage_T.end(), 0.0f);
  std::fill(batch.old_logp_T.begin(), batch.old_logp_T.end(), -1000.0f);
  Context ctx;
  parallel::HeadOutput out;
  out.logp_T = ctx.Clone(
      Tensor(logp.data(), {static_cast<int64_t>(logp.size())}, DType::kF32, Device::Cpu()));
  for (auto ratio : {PolicyLossConfig::Ratio::kToken, PolicyLossConfig::Ratio::kSequence}) {
    PolicyLossConfig config;
    config.ratio = ratio;
    config.kl_coefficient = 0;
    auto result = PolicyLoss(config).Evaluate(ctx, batch, out);
    EXPECT_EQ(result.loss, 0);
    EXPECT_EQ(runtime::ToDoubles(result.gradient.dlogp_T), std::vector<double>(logp.size(), 0.0));
  }
}

// Without old log-probabilities the forward's own are the old ones: the same bits as with them.
TEST(PolicyLoss, TheCurrentPolicyMayBeTheOldOne) {
  Context ctx;
  TokenBatch given = FixtureBatch(), left_out = given;
  left_out.old_logp_T.clear();
  parallel::HeadOutput out;
  std::vector<float>& old = given.old_logp_T;
  out.logp_T =
      ctx.Clone(Tensor(old.data(), {static_cast<int64_t>(old.size())}, DType::kF32, Device::Cpu()));
  for (auto ratio : {PolicyLossConfig::Ratio::kToken, PolicyLossConfig::Ratio::kSequence}) {
    PolicyLossConfig config;
    config.ratio = ratio;
    config.importance_cap = 1.5;
    auto with = PolicyLoss(config).Evaluate(ctx, given, out);
    auto without = PolicyLoss(config).Evaluate(ctx, left_out, out);
    EXPECT_EQ(with.loss, without.loss);
    EXPECT_EQ(with.metrics, without.metrics);
    EXPECT_EQ(runtime::ToDoubles(with.gradient.dlogp_T),
              runtime::ToDoubles(without.gradient.dlogp_T));
    EXPECT_NE(with.metrics["importance_weight"], with.metrics["ratio"]);
  }
}

TEST(PolicyLoss, RefusesABatchWithoutItsFields) {
  TokenBatch batch = FixtureBatch();
  batch.reference_logp_T.clear();
  Context ctx;
  parallel::HeadOutput out;
  out.logp_T = ctx.Zeros({batch.tokens()}, DType::kF64);
  EXPECT_THROW(PolicyLoss({}).Evaluate(ctx, batch, out), ShapeError);
  PolicyLossConfig no_reference;
  no_reference.kl_coefficient = 0;
  EXPECT_NO_THROW(PolicyLoss(no_reference).Evaluate(ctx, batch, out));
}

TEST(CrossEntropyLoss, IsTheWeightedSum) {
  TokenBatch batch = FixtureBatch();
  std::vector<double> logp = Fixture()["logp"];
  double expected = 0;
  for (size_t t = 0; t < logp.size(); ++t) expected -= batch.loss_weight_T[t] * logp[t];
  Context ctx;
  parallel::HeadOutput out;
  out.logp_T = ctx.Clone(
      Tensor(logp.data(), {static_cast<int64_t>(logp.size())}, DType::kF64, Device::Cpu()));
  EXPECT_NEAR(CrossEntropyLoss().Evaluate(ctx, batch, out).loss, expected, 1e-14);
}

}  // namespace
}  // namespace hone::rl
