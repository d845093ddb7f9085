// What a learner trains, and what it leaves alone.
#include "rl/learner.h"

#include <gtest/gtest.h>

#include "parallel/comm/process_group.h"
#include "rl/policy_loss.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

std::map<std::string, std::vector<double>> WeightsOf(Learner& learner) {
  std::map<std::string, std::vector<double>> all;
  for (const SlabTensor& s : learner.Weights()) all[s.slab.name] = runtime::ToDoubles(s.tensor);
  return all;
}

// Three sequences with all that either loss reads.
TokenBatch SomeBatch() {
  TokenBatch batch;
  batch.cu_seqlens = {0, 6, 10, 16};
  for (int t = 0; t < 16; ++t) {
    batch.token_T.push_back(3 + 7 * t % 200);
    batch.target_T.push_back(3 + 7 * (t + 1) % 200);
    batch.position_T.push_back(t < 6 ? t : t < 10 ? t - 6 : t - 10);
    batch.loss_weight_T.push_back(1.0f / 16);
    batch.old_logp_T.push_back(-5.0f);
    batch.sampled_logp_T.push_back(-5.0f);
    batch.reference_logp_T.push_back(-5.5f);
    batch.advantage_T.push_back(t < 6 ? 1.0f : -0.5f);
  }
  batch.sample_S = {0, 1, 2};
  return batch;
}

class LearnerTest : public testing::Test {
 protected:
  LearnerTest() {
    WriteQuestions(folder_ / "questions.jsonl");
    config_ = ReadRunConfig(Config::FromString(TinyRun(folder_ / "questions.jsonl"), "test.yaml"));
  }
  // How many tensors of multi-token prediction, and of the rest, a few steps change.
  // `released`: behind a stage of reinforcement learning that has given its memory away.
  std::pair<int, int> Changed(const parallel::LossFunction& loss, Learner::Mtp mtp,
                              bool released = false) {
    Context ctx;
    parallel::Mesh mesh(config_.mesh, parallel::MakeSingleGroup());
    Learner learner(ctx, mesh, config_, runtime::LocalFileSystem());
    learner.Initialize();
    if (released) {
      learner.BeginStage(parallel::AdamWConfig{}, Learner::Mtp::kFrozen);
      learner.ReleaseMemory();
      const auto gradients = static_cast<size_t>(MemoryCategory::kGradients);
      EXPECT_EQ(ctx.allocator()->Usage().live[gradients], 0);
    }
    learner.BeginStage(parallel::AdamWConfig{}, mtp);
    const auto before = WeightsOf(learner);
    for (int step = 0; step < 3; ++step) learner.engine().Step({SomeBatch()}, loss, 1e-2);
    std::pair<int, int> changed{0, 0};
    for (const auto& [name, values] : WeightsOf(learner)) {
      bool predictor = name.starts_with("model.layers.4.");
      if (values != before.at(name)) ++(predictor ? changed.first : changed.second);
      (predictor ? predictors_ : others_) += 1;
    }
    return changed;
  }

  runtime::TemporaryFolder folder_;
  RunConfig config_;
  int predictors_ = 0, others_ = 0;
};

TEST_F(LearnerTest, MultiTokenPredictionStaysAsItIsUnderAPolicyLoss) {
  const auto [predictor, others] = Changed(PolicyLoss(PolicyLossConfig{}), Learner::Mtp::kFrozen);
  EXPECT_EQ(predictor, 0);
  EXPECT_GT(others, others_ / 2);
  EXPECT_GT(predictors_, 10) << "the model has one";
}

TEST_F(LearnerTest, MultiTokenPredictionIsTrainedUnderCrossEntropy) {
  const auto [predictor, others] = Changed(CrossEntropyLoss(), Learner::Mtp::kTrained);
  EXPECT_GT(predictor, predictors_ / 2);
  EXPECT_GT(others, others_ / 2);
}

TEST_F(LearnerTest, AStageBehindOneThatGaveItsMemoryAwayTrainsAsMuch) {
  const auto [predictor, others] = Changed(CrossEntropyLoss(), Learner::Mtp::kTrained, true);
  EXPECT_GT(predictor, predictors_ / 2);
  EXPECT_GT(others, others_ / 2);
}

}  // namespace
}  // namespace hone::rl
