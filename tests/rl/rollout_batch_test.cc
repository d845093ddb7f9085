// From samples to the learner's batches: rewards, advantages, loss weights, minibatches, the split
// over data-parallel ranks.
#include "rl/stages/rollout_batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace hone::rl {
namespace {

constexpr int kPrompt = 3;

// A sample of `drawn` tokens behind a prompt of three. Token values tell where they come from.
Sample MakeSample(int64_t prompt, int64_t index, int drawn, double accuracy) {
  Sample sample;
  sample.key = {"stage", 0, prompt, index};
  int32_t base = static_cast<int32_t>(1000 * prompt + 100 * index);
  for (int i = 0; i < kPrompt; ++i) sample.tokens.push_back({base + i, TokenSource::kPrompt, 0, 0});
  for (int i = 0; i < drawn; ++i) {
    sample.tokens.push_back(
        {base + 50 + i, TokenSource::kModel, -0.01f * static_cast<float>(base + i), 1});
  }
  sample.rewards = {{"accuracy", accuracy}, {"format", 1.0}};
  return sample;
}

GrpoConfig MakeConfig() {
  GrpoConfig config;
  config.group_size = 3;
  config.reward = {{"accuracy", 1.0}, {"format", 0.5}};
  config.sampling.max_new_tokens = 20;
  return config;
}

// Two prompts of three samples, 4 to 14 tokens drawn.
RolloutBatch MakeRollout() {
  RolloutBatch rollout;
  int drawn[] = {4, 6, 14, 5, 9, 7};
  double accuracy[] = {1, 0, 0, 1, 1, 0};
  for (int i = 0; i < 6; ++i) {
    rollout.samples.push_back(MakeSample(i / 3, i % 3, drawn[i], accuracy[i]));
  }
  return rollout;
}

std::vector<int64_t> All(const RolloutBatch& rollout) {
  std::vector<int64_t> all(rollout.samples.size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

TEST(CombineRewards, IsTheWeightedSum) {
  GrpoConfig config = MakeConfig();
  Sample sample = MakeSample(0, 0, 4, 1);
  EXPECT_DOUBLE_EQ(CombineRewards(sample, config), 1.5);
  config.reward = {{"accuracy", 2}, {"language", 3}};  // a part that the sample lacks adds nothing
  EXPECT_DOUBLE_EQ(CombineRewards(sample, config), 2.0);
}

// DAPO, eq. 13 with L_max = 100 and a buffer of 20: 0 up to 80, then linear to −1 at 100. The
// values at 50 and 90 tokens are those of open-r1's tests.
TEST(CombineRewards, SoftOverlongPunishment) {
  GrpoConfig config = MakeConfig();
  config.reward = {{"accuracy", 1}};
  config.sampling.max_new_tokens = 100;
  config.overlong_buffer = 0.2;
  const std::pair<int, double> cases[] = {{50, 0}, {80, 0}, {85, -0.25}, {90, -0.5}, {100, -1}};
  for (auto [tokens, punishment] : cases) {
    EXPECT_NEAR(CombineRewards(MakeSample(0, 0, tokens, 0), config), punishment, 1e-12) << tokens;
  }
}

TEST(UnusableShare, IsOfAllThatWasNotJudged) {
  EXPECT_EQ(UnusableShare({}), 0);
  std::vector<Sample> samples;
  for (int i = 0; i < kOutcomeCount; ++i) {
    samples.push_back(MakeSample(0, i, 4, 0));
    samples.back().outcome = static_cast<Outcome>(i);
  }
  EXPECT_DOUBLE_EQ(UnusableShare(samples), 4.0 / 6);
  for (Sample& s : samples) s.outcome = Outcome::kRefused;
  EXPECT_EQ(UnusableShare(samples), 1);
}

TEST(AssignAdvantages, GroupsByPrompt) {
  RolloutBatch rollout = MakeRollout();
  AssignAdvantages(&rollout, MakeConfig(), 1);
  EXPECT_EQ(rollout.group, (std::vector<int64_t>{0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(rollout.reward, (std::vector<double>{1.5, 0.5, 0.5, 1.5, 1.5, 0.5}));
  double root2 = std::sqrt(2.0);  // of 1, 0, 0: mean 1/3, deviation √2 / 3
  const double expected[] = {root2, -root2 / 2, -root2 / 2, root2 / 2, root2 / 2, -root2};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(rollout.advantage[i], expected[i], 1e-12) << i;
}

TEST(AssignAdvantages, ShuffledRewardsAreAPermutationBySeed) {
  GrpoConfig config = MakeConfig();
  config.shuffle_rewards = true;
  RolloutBatch a = MakeRollout(), b = MakeRollout(), plain = MakeRollout();
  for (int i = 0; i < 6; ++i) {
    for (RolloutBatch* r : {&a, &b, &plain}) r->samples[i].rewards["accuracy"] = i;
  }
  AssignAdvantages(&a, config, 1);
  AssignAdvantages(&b, config, 1);
  EXPECT_EQ(a.reward, b.reward);
  AssignAdvantages(&b, config, 2);
  EXPECT_NE(a.reward, b.reward);
  config.shuffle_rewards = false;
  AssignAdvantages(&plain, config, 1);
  EXPECT_NE(a.reward, plain.reward);
  std::sort(a.reward.begin(), a.reward.end());
  EXPECT_EQ(a.reward, plain.reward);
}

// Prompts 0 and 3 have samples of different reward, 1 and 2 and 4 have not.
std::vector<Sample> FivePrompts() {
  std::vector<Sample> samples;
  const double accuracy[5][2] = {{0, 1}, {1, 1}, {0, 0}, {1, 0}, {0, 0}};
  for (int64_t p = 0; p < 5; ++p) {
    for (int64_t i = 0; i < 2; ++i) samples.push_back(MakeSample(p, i, 4, accuracy[p][i]));
  }
  return samples;
}

std::vector<int64_t> PromptsOf(const std::vector<Sample>& samples) {
  std::vector<int64_t> prompts;
  for (const Sample& s : samples) prompts.push_back(s.key.prompt);
  return prompts;
}

TEST(DynamicSampling, KeepsPromptsWhoseRewardsDiffer) {
  GrpoConfig config = MakeConfig();
  EXPECT_EQ(InformativePrompts(FivePrompts(), config), 2);
  config.prompts_per_rollout = 1;
  EXPECT_EQ(PromptsOf(ChoosePrompts(FivePrompts(), config)), (std::vector<int64_t>{0, 0}));
  config.prompts_per_rollout = 2;
  EXPECT_EQ(PromptsOf(ChoosePrompts(FivePrompts(), config)), (std::vector<int64_t>{0, 0, 3, 3}));
  config.prompts_per_rollout = 3;  // one too few: filled in prompt order
  EXPECT_EQ(PromptsOf(ChoosePrompts(FivePrompts(), config)),
            (std::vector<int64_t>{0, 0, 1, 1, 3, 3}));
}

// What differs is the reward as it is weighted: a part of weight 0 tells nothing.
TEST(DynamicSampling, LooksAtTheWeightedReward) {
  GrpoConfig config = MakeConfig();
  config.reward = {{"accuracy", 0.0}, {"format", 1.0}};
  EXPECT_EQ(InformativePrompts(FivePrompts(), config), 0);
  config.overlong_buffer = 0.5;
  std::vector<Sample> samples = FivePrompts();
  samples[2] = MakeSample(1, 0, 18, 1);  // longer than its sibling, and punished for it
  EXPECT_EQ(InformativePrompts(samples, config), 1);
}

// One (sample, input token) of the step: weight and RL fields, by the token's id.
using Row = std::tuple<int32_t, int32_t, float, float, float, float, float>;

std::vector<Row> Rows(const std::vector<TokenBatch>& batches) {
  std::vector<Row> rows;
  for (const TokenBatch& b : batches) {
    for (int64_t t = 0; t < b.tokens(); ++t) {
      rows.emplace_back(b.token_T[t], b.target_T[t], b.loss_weight_T[t], b.sampled_logp_T[t],
                        b.old_logp_T[t], b.reference_logp_T[t], b.advantage_T[t]);
    }
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

LearnerBatches OneRank(const RolloutBatch& rollout, const GrpoConfig& config) {
  BatchConfig batch;
  batch.pack_tokens = 32;
  return MakeLearnerBatches(rollout, All(rollout), config, batch, 1, 0);
}

// By target id: what each drawn token weighs.
std::map<int32_t, double> Weights(const LearnerBatches& batches) {
  std::map<int32_t, double> weights;
  for (const TokenBatch& b : batches.microbatches) {
    for (int64_t t = 0; t < b.tokens(); ++t) {
      if (b.loss_weight_T[t] != 0) weights[b.target_T[t]] += b.loss_weight_T[t];
    }
  }
  return weights;
}

TEST(LearnerBatches, AveragesAreWeights) {
  RolloutBatch rollout = MakeRollout();
  AssignAdvantages(&rollout, MakeConfig(), 1);
  using Average = GrpoConfig::Average;
  for (Average average : {Average::kSequence, Average::kToken, Average::kMaxLength}) {
    GrpoConfig config = MakeConfig();
    config.average = average;
    auto weights = Weights(OneRank(rollout, config));
    ASSERT_EQ(weights.size(), 45u);  // the drawn tokens, each once
    double sum = 0;
    for (const Sample& sample : rollout.samples) {
      double n = static_cast<double>(sample.completion_tokens());
      double expected = average == Average::kSequence ? 1 / (6 * n)
                        : average == Average::kToken  ? 1.0 / 45
                                                      : 1 / (6 * 20.0);
      for (size_t i = kPrompt; i < sample.tokens.size(); ++i) {
        EXPECT_NEAR(weights.at(sample.tokens[i].id), expected, 1e-8);
        sum += weights.at(sample.tokens[i].id);
      }
    }
    EXPECT_NEAR(sum, average == Average::kMaxLength ? 45.0 / 120 : 1.0, 1e-6);
  }
}

// Each field stands at the input token that predicts the drawn one.
TEST(LearnerBatches, FieldsStandWhereTheyBelong) {
  RolloutBatch rollout = MakeRollout();
  AssignAdvantages(&rollout, MakeConfig(), 1);
  for (const Sample& sample : rollout.samples) {
    std::vector<float> old, reference;
    for (int64_t j = 0; j < sample.completion_tokens(); ++j) {
      old.push_back(-static_cast<float>(sample.tokens[kPrompt + j].id));
      reference.push_back(old.back() - 0.5f);
    }
    rollout.old_logp.push_back(old);
    rollout.reference_logp.push_back(reference);
  }
  LearnerBatches batches = OneRank(rollout, MakeConfig());
  int64_t drawn = 0, tokens = 0;
  for (size_t m = 0; m < batches.microbatches.size(); ++m) {
    const TokenBatch& b = batches.microbatches[m];
    EXPECT_NO_THROW(b.Validate(3000, 64, "test"));
    ASSERT_EQ(b.sample_S.size(), batches.samples[m].size());
    tokens += b.tokens();
    for (int64_t s = 0; s < b.sequences(); ++s) {
      const Sample& sample = rollout.samples[b.sample_S[s]];
      EXPECT_EQ(b.sample_S[s], batches.samples[m][s]);
      ASSERT_EQ(b.cu_seqlens[s + 1] - b.cu_seqlens[s],
                static_cast<int32_t>(sample.tokens.size()) - 1);
      for (int64_t t = b.cu_seqlens[s]; t < b.cu_seqlens[s + 1]; ++t) {
        const SampleToken& next = sample.tokens[t - b.cu_seqlens[s] + 1];
        EXPECT_EQ(b.token_T[t], sample.tokens[t - b.cu_seqlens[s]].id);
        EXPECT_EQ(b.target_T[t], next.id);
        bool model = next.source == TokenSource::kModel;
        drawn += model;
        EXPECT_EQ(b.loss_weight_T[t] != 0, model);
        EXPECT_EQ(b.sampled_logp_T[t], model ? next.logp : 0);
        EXPECT_EQ(b.old_logp_T[t], model ? -static_cast<float>(next.id) : 0);
        EXPECT_EQ(b.reference_logp_T[t], model ? -static_cast<float>(next.id) - 0.5f : 0);
        EXPECT_EQ(b.advantage_T[t],
                  model ? static_cast<float>(rollout.advantage[b.sample_S[s]]) : 0);
      }
    }
  }
  EXPECT_EQ(drawn, 45);
  EXPECT_EQ(tokens, batches.tokens);
  rollout.old_is_current = true;
  for (const TokenBatch& b : OneRank(rollout, MakeConfig()).microbatches) {
    EXPECT_TRUE(b.old_logp_T.empty());
    EXPECT_FALSE(b.sampled_logp_T.empty());
  }
}

TEST(LearnerBatches, EnvironmentTokensAreNotLearned) {
  RolloutBatch rollout = MakeRollout();
  rollout.samples[2].tokens[kPrompt + 5].source = TokenSource::kEnvironment;
  AssignAdvantages(&rollout, MakeConfig(), 1);
  auto weights = Weights(OneRank(rollout, MakeConfig()));
  EXPECT_EQ(weights.count(rollout.samples[2].tokens[kPrompt + 5].id), 0u);
  EXPECT_NEAR(weights.at(rollout.samples[2].tokens[kPrompt].id), 1.0 / (6 * 13), 1e-8);
}

// Any number of ranks holds, together, the same tokens with the same weights.
TEST(LearnerBatches, TheSplitOverRanksChangesNothing) {
  RolloutBatch rollout = MakeRollout();
  GrpoConfig config = MakeConfig();
  AssignAdvantages(&rollout, config, 1);
  BatchConfig batch;
  batch.pack_tokens = 24;
  std::vector<int64_t> which = {0, 2, 3, 4, 5};
  auto whole = MakeLearnerBatches(rollout, which, config, batch, 1, 0);
  ASSERT_GT(whole.microbatches.size(), 2u);
  for (int dp : {2, 3, 4}) {
    std::vector<TokenBatch> together;
    std::set<size_t> counts;
    for (int rank = 0; rank < dp; ++rank) {
      auto part = MakeLearnerBatches(rollout, which, config, batch, dp, rank);
      EXPECT_EQ(part.tokens, whole.tokens);
      counts.insert(part.microbatches.size());
      for (auto& b : part.microbatches) together.push_back(std::move(b));
    }
    EXPECT_EQ(counts.size(), 1u) << "ranks must make the same number of microbatches";
    EXPECT_EQ(Rows(together), Rows(whole.microbatches)) << "dp " << dp;
  }
}

// Few long packs, and schedules that want more microbatches: smaller packs, and at last empty ones;
// always the same tokens with the same weights.
TEST(LearnerBatches, SchedulesGetTheMicrobatchesThatTheyWant) {
  RolloutBatch rollout = MakeRollout();
  GrpoConfig config = MakeConfig();
  AssignAdvantages(&rollout, config, 1);
  BatchConfig batch;
  batch.pack_tokens = 1024;
  const std::vector<int64_t> which = {0, 2, 3, 4, 5};
  auto whole = MakeLearnerBatches(rollout, which, config, batch, 1, 0);
  ASSERT_EQ(whole.microbatches.size(), 1u);
  using Kind = parallel::ScheduleKind;
  for (Kind kind : {Kind::kGPipe, Kind::k1F1B, Kind::kInterleaved, Kind::kZbH1, Kind::kDualPipeV}) {
    for (int ranks : {1, 2, 3, 4}) {
      for (int dp : {1, 2}) {
        parallel::PipelineShape shape{
            kind, ranks, kind == Kind::kDualPipeV || kind == Kind::kInterleaved ? 2 : 1, 1};
        std::vector<TokenBatch> together;
        for (int rank = 0; rank < dp; ++rank) {
          auto part = MakeLearnerBatches(rollout, which, config, batch, dp, rank, shape);
          shape.microbatches = static_cast<int>(part.microbatches.size());
          EXPECT_NO_THROW(shape.Validate());
          EXPECT_EQ(part.samples.size(), part.microbatches.size());
          for (auto& b : part.microbatches) {
            EXPECT_NO_THROW(b.Validate(10000, 1024, "pack"));
            together.push_back(std::move(b));
          }
        }
        EXPECT_EQ(Rows(together), Rows(whole.microbatches));
        if (kind == Kind::kDualPipeV && ranks == 2 && dp == 1) {
          // Four are wanted, five sequences are there: none stands idle.
          for (auto& b : together) EXPECT_GT(b.tokens(), 0);
        }
      }
    }
  }
}

TEST(SplitMinibatches, IsAPartitionBySeed) {
  auto split = SplitMinibatches(100, 7, 3);
  ASSERT_EQ(split.size(), 7u);
  std::vector<int64_t> seen;
  for (auto& m : split) {
    EXPECT_TRUE(m.size() == 14 || m.size() == 15);
    EXPECT_TRUE(std::is_sorted(m.begin(), m.end()));
    seen.insert(seen.end(), m.begin(), m.end());
  }
  std::sort(seen.begin(), seen.end());
  for (int64_t i = 0; i < 100; ++i) EXPECT_EQ(seen[i], i);
  EXPECT_EQ(split, SplitMinibatches(100, 7, 3));
  EXPECT_NE(split, SplitMinibatches(100, 7, 4));
}

}  // namespace
}  // namespace hone::rl
