// Things that are to come pass through the contracts as they are: rollouts of several turns, and
// tensor-parallel slabs. Frozen parameters and spliced embeddings: tests/model.
#include <gmock/gmock.h>

#include "parallel/comm/process_group.h"
#include "rl/policy_loss.h"
#include "rl/stages/rollout_batch.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/model/stage_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

// "P" prompt, "M" drawn by the model, "E" what an environment answered.
Sample SampleOf(const std::string& sources, int64_t index) {
  Sample sample;
  sample.key = {"stage", 0, 0, index};
  for (size_t i = 0; i < sources.size(); ++i) {
    SampleToken token;
    token.id = static_cast<int32_t>(1 + i % 20);
    token.source = sources[i] == 'P'   ? TokenSource::kPrompt
                   : sources[i] == 'M' ? TokenSource::kModel
                                       : TokenSource::kEnvironment;
    if (token.source == TokenSource::kModel) token.logp = -0.5f - 0.01f * static_cast<float>(i);
    sample.tokens.push_back(token);
  }
  return sample;
}

class TwoTurnsTest : public testing::Test {
 protected:
  TwoTurnsTest() {
    rollout_.samples = {SampleOf(kTurns[0], 0), SampleOf(kTurns[1], 1)};
    rollout_.reward = {1, 0};
    rollout_.advantage = {1, -1};
    rollout_.group = {0, 0};
  }
  TokenBatch Batch(GrpoConfig::Average average) const {
    GrpoConfig config;
    config.average = average;
    BatchConfig batch;
    batch.pack_tokens = batch.max_length = 64;
    auto made = MakeLearnerBatches(rollout_, {0, 1}, config, batch, /*dp=*/1, /*dp_rank=*/0);
    EXPECT_EQ(made.microbatches.size(), 1u);
    return made.microbatches[0];
  }
  // The source of what each input token is to predict.
  static std::string Targets() { return kTurns[0].substr(1) + kTurns[1].substr(1); }

  inline static const std::vector<std::string> kTurns = {"PPPMMEEEMMM", "PPMMM"};
  RolloutBatch rollout_;
};

TEST_F(TwoTurnsTest, OnlyWhatTheModelDrewHasALoss) {
  const TokenBatch by_sequence = Batch(GrpoConfig::Average::kSequence);
  const TokenBatch by_token = Batch(GrpoConfig::Average::kToken);
  ASSERT_EQ(by_sequence.tokens(), static_cast<int64_t>(Targets().size()));
  for (size_t t = 0; t < Targets().size(); ++t) {
    const bool first = t < kTurns[0].size() - 1, model = Targets()[t] == 'M';
    // 1 / (G · |o|), |o| the five or three tokens drawn.
    EXPECT_FLOAT_EQ(by_sequence.loss_weight_T[t], model ? (first ? 1.0 / 10 : 1.0 / 6) : 0) << t;
    EXPECT_FLOAT_EQ(by_token.loss_weight_T[t], model ? 1.0 / 8 : 0) << t;
  }
}

TEST_F(TwoTurnsTest, TheEnvironmentIsReadButNotLearnt) {
  model::ModelConfig config = model::TinyDense();
  Context ctx;
  model::TransformerStage stage(ctx, config, model::WholeModel(config, DType::kF64));
  model::FillStage(ctx, stage, 7);
  PolicyLossConfig options;
  options.kl_coefficient = 0;
  options.clip_low = 1;  // nothing is clipped: every token drawn has a gradient
  options.clip_high = 1000;
  const PolicyLoss loss(options);
  const TokenBatch batch = Batch(GrpoConfig::Average::kSequence);
  stage.BeginStep(/*keep_head_output=*/true);
  stage.Forward(ctx, 0, batch, {}, &loss, /*train=*/true);
  const auto outcome = stage.TakeOutcome(0);
  const auto gradient = loss.Evaluate(ctx, batch, outcome.head).gradient;
  const std::vector<double> dlogp = ToDoubles(gradient.dlogp_T);
  const std::vector<double> logp = ToDoubles(outcome.head.logp_T);
  for (size_t t = 0; t < dlogp.size(); ++t) {
    EXPECT_EQ(dlogp[t] != 0, Targets()[t] == 'M') << t;
  }
  // Another answer of the environment changes what the model says after it, and nothing before.
  for (SampleToken& token : rollout_.samples[0].tokens) {
    if (token.source == TokenSource::kEnvironment) token.id = (token.id + 5) % 20;
  }
  const TokenBatch other = Batch(GrpoConfig::Average::kSequence);
  stage.BeginStep(/*keep_head_output=*/true);
  stage.Forward(ctx, 0, other, {}, &loss, /*train=*/true);
  const std::vector<double> logp_after = ToDoubles(stage.TakeOutcome(0).head.logp_T);
  for (size_t t = 0; t < logp.size(); ++t) {
    if (Targets()[t] != 'M') continue;
    const bool later = t >= kTurns[0].rfind('E') && t < kTurns[0].size() - 1;
    EXPECT_EQ(logp_after[t] != logp[t], later) << t;
  }
}

// Half of each tensor's rows or columns, as tensor parallelism would cut it.
SlabTensor Half(Context& ctx, const Slab& whole, size_t dim, int rank) {
  Slab slab = whole;
  const int64_t middle = whole.global_shape[dim] / 2;
  slab.offset[dim] = rank == 0 ? 0 : middle;
  slab.extent[dim] = rank == 0 ? middle : whole.global_shape[dim] - middle;
  return {slab, ctx.Zeros(slab.extent, DType::kF64)};
}

// Output projections are cut by columns, the others by rows, norms not at all.
SlabIndex TensorParallel(Context& ctx, model::TransformerStage& stage, int rank) {
  SlabIndex slabs;
  for (const SlabTensor& t : stage.State()) {
    const bool columns = t.slab.name.find("o_proj") != std::string::npos ||
                         t.slab.name.find("down_proj") != std::string::npos;
    if (t.slab.global_shape.size() < 2) {
      slabs.push_back({t.slab, ctx.Zeros(t.slab.extent, DType::kF64)});
    } else {
      slabs.push_back(Half(ctx, t.slab, columns ? 1 : 0, rank));
    }
  }
  return slabs;
}

TEST(TensorParallelTest, SlabsOfTwoRanksAreSavedAndLoadedWhole) {
  runtime::TemporaryFolder folder;
  const std::string dir = folder / "step-000001", again = folder / "step-000002";
  const model::ModelConfig config = model::TinyDense();
  parallel::RunThreadRanks(2, [&](const parallel::GroupPtr& world) {
    Context ctx;
    model::TransformerStage source(ctx, config, model::WholeModel(config, DType::kF64));
    model::FillStage(ctx, source, 7);
    const SlabIndex mine = TensorParallel(ctx, source, world->rank());
    runtime::CopySlabs(source.State(), mine);
    runtime::CheckpointWriter writer(runtime::LocalFileSystem(), parallel::MakeRendezvous(world),
                                     {});
    writer.Save(dir, {mine, "{}"});
    writer.Wait();

    model::TransformerStage whole(ctx, config, model::WholeModel(config, DType::kF64));
    runtime::CheckpointReader(runtime::LocalFileSystem(), dir).Load(whole.State());
    const SlabIndex want = source.State(), got = whole.State();
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(ToDoubles(got[i].tensor), ToDoubles(want[i].tensor)) << want[i].slab.name;
    }
    // And from the whole back into halves.
    writer.Save(again, {whole.State(), "{}"});
    writer.Wait();
    const SlabIndex back = TensorParallel(ctx, whole, world->rank());
    runtime::CheckpointReader(runtime::LocalFileSystem(), again).Load(back);
    for (size_t i = 0; i < back.size(); ++i) {
      EXPECT_EQ(ToDoubles(back[i].tensor), ToDoubles(mine[i].tensor)) << back[i].slab.ToString();
    }
  });
}

}  // namespace
}  // namespace hone::rl
