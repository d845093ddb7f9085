// emulated: random:1
// Weights that stay in fp8 for a step: quantised once, to the bits of those that are not kept; the
// next step has the next weights.
#include <cmath>

#include "parallel/comm/device_group.h"
#include "parallel/train_engine.h"
#include "tests/device.h"
#include "tests/model/stage_testing.h"

namespace hone::model {
namespace {

using parallel::TrainEngine;

constexpr int kMicrobatches = 2;

bool MultipliedInFp8(const Parameter& p) {
  return p.spec.name.find("_proj") != std::string::npos && p.value.ndim() > 1;
}

// Overwrites weights by NaN in a step's second microbatch: the first, whose backward is over, has
// used each of them.
class SpoilingLoss : public CrossEntropyLoss {
 public:
  SpoilingLoss(std::vector<Parameter*> parameters, bool spoils)
      : parameters_(std::move(parameters)), spoils_(spoils) {}
  Result Evaluate(Context& ctx, const TokenBatch& batch, const HeadOutput& out) const override {
    if (calls_++ % kMicrobatches == 1 && spoils_) {
      for (const Parameter* p : parameters_) {
        if (!MultipliedInFp8(*p)) continue;
        const std::vector<double> nan(static_cast<size_t>(p->value.size()), std::nan(""));
        CopyTo(FromDoubles(ctx, nan, p->value.shape(), p->value.dtype()), p->value, &ctx.stream());
      }
    }
    return CrossEntropyLoss::Evaluate(ctx, batch, out);
  }

 private:
  std::vector<Parameter*> parameters_;
  const bool spoils_;
  mutable int calls_ = 0;
};

// Every expert is chosen in each microbatch.
TokenBatch Batch(const ModelConfig& config, uint64_t seed) {
  TokenBatch batch = RandomBatch(config, {5, 4}, seed);
  const int64_t layers =
      config.num_hidden_layers - config.first_k_dense_replace + config.num_nextn_predict_layers;
  const auto chosen = batch.tokens() * layers * config.num_experts_per_tok;
  for (int64_t i = 0; i < chosen && config.is_moe(); ++i) {
    batch.routing_TLK.push_back(static_cast<int32_t>(i % config.n_routed_experts));
  }
  return batch;
}

struct Trained {
  std::vector<std::vector<double>> values;  // of parameters, after the last step
  std::vector<double> losses;
  bool skipped = false;
  int64_t weights = 0, peak = 0;  // bytes: between steps, and the most
};

struct Case {
  bool keeps = true, spoils = false, checkpointing = true;
};

Trained Train(const ModelConfig& config, const Case& c) {
  Context ctx(TestDevice());
  ctx.fp8 = true;
  ctx.numerics = Numerics::kFast;
  StageOptions stage_options = WholeModel(config, DType::kBF16);
  stage_options.activation_checkpointing = c.checkpointing;
  TransformerStage stage(ctx, config, stage_options);
  FillStage(ctx, stage, 5, 0.2);
  const parallel::GroupPtr alone = parallel::MakeSingleGroup();
  parallel::Mesh mesh({1, 1, 1},
                      ctx.device().is_cpu() ? alone : parallel::MakeStagedGroup(ctx, alone));
  TrainEngine::Options options;
  options.keep_fp8 = c.keeps;
  TrainEngine engine(ctx, mesh, {&stage}, options);
  const SpoilingLoss loss(stage.Parameters(), c.spoils);
  Trained trained;
  for (uint64_t step = 0; step < 2; ++step) {
    std::vector<TokenBatch> batches;
    for (uint64_t i = 0; i < kMicrobatches; ++i) batches.push_back(Batch(config, 10 * step + i));
    const TrainEngine::StepResult result = engine.Step(batches, loss, 0.01);
    trained.losses.push_back(result.loss);
    trained.skipped = trained.skipped || result.skipped;
  }
  const auto usage = ctx.allocator()->Usage();
  trained.weights = usage.live[static_cast<size_t>(MemoryCategory::kWeights)];
  trained.peak = usage.peak[static_cast<size_t>(MemoryCategory::kWeights)];
  for (Parameter* p : stage.Parameters()) trained.values.push_back(ToDoubles(p->value));
  return trained;
}

void Check(const ModelConfig& config, bool checkpointing) {
  const Trained each_use = Train(config, {false, false, checkpointing});
  const Trained kept = Train(config, {true, false, checkpointing});
  EXPECT_FALSE(each_use.skipped);
  EXPECT_EQ(kept.values, each_use.values);
  EXPECT_EQ(kept.losses, each_use.losses);
  EXPECT_NE(kept.losses[0], kept.losses[1]);
  // Their memory is the weights', and given back.
  EXPECT_EQ(each_use.peak, each_use.weights);
  EXPECT_EQ(kept.weights, each_use.weights);
  EXPECT_GT(kept.peak, kept.weights);
  if (config.attention_bias) return;  // queries, keys and values read their weights themselves
  const Trained spoiled = Train(config, {true, true, checkpointing});
  EXPECT_FALSE(spoiled.skipped);
  EXPECT_EQ(spoiled.values, each_use.values);
  EXPECT_TRUE(Train(config, {false, true, checkpointing}).skipped);
}

TEST(Fp8Weights, AStepQuantisesEachWeightOnce) {
  Check(TinySoftmaxMoe(), true);
  if (!TestDevice().is_cpu()) return;  // an emulated GPU takes its time
  Check(TinyV3(), true);
  Check(TinyV3(), false);
  Check(TinyTied(), false);
}

}  // namespace
}  // namespace hone::model
