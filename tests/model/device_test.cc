// emulated: random:1
// timeout: 600
// Whole models on the device under test against the same models on the CPU: losses, gradients,
// logits of decoding, and training steps on one rank and on ranks that share the device.
#include "tests/device.h"

#include <gtest/gtest.h>

#include "parallel/comm/device_group.h"
#include "parallel/train_engine.h"
#include "tests/model/stage_testing.h"

namespace hone::model {
namespace {

using parallel::GroupPtr;
using parallel::MeshConfig;
using parallel::TrainEngine;

struct Case {
  std::string name;
  ModelConfig config;
  DType dtype;
  double tolerance;  // of max|Δ| / max|value|
};

// Takes every expert, so that rounding cannot change the choice.
ModelConfig AllExpertsV3() {
  ModelConfig config = TinyV3();
  config.num_experts_per_tok = config.n_routed_experts;
  config.topk_group = config.n_group;
  return config;
}

std::vector<Case> Cases() {
  return {{"dense", TinyDense(), DType::kF64, 1e-10},
          {"tied", TinyTied(), DType::kF64, 1e-10},
          {"moe", TinySoftmaxMoe(), DType::kF64, 1e-10},
          {"v3", TinyV3(), DType::kF64, 1e-10},
          {"dense_f32", TinyDense(), DType::kF32, 1e-4},
          {"dense_bf16", TinyDense(), DType::kBF16, 0.05},
          {"v3_f32", TinyV3(), DType::kF32, 1e-4},
          {"v3_bf16", AllExpertsV3(), DType::kBF16, 0.05}};
}

class OnDevice : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Models, OnDevice, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// What one forward and backward leave: the loss and every gradient.
std::vector<std::vector<double>> LossAndGradients(Device device, const Case& c,
                                                  const LossFunction& loss, bool checkpointing) {
  Context ctx(device);
  StageOptions options = WholeModel(c.config, c.dtype);
  options.activation_checkpointing = checkpointing;
  TransformerStage stage(ctx, c.config, options);
  FillStage(ctx, stage, 5);
  ZeroGradients(stage);
  const TokenBatch batch = RandomBatch(c.config, {7, 1, 20}, 3);
  std::vector<std::vector<double>> values = {{ForwardLoss(ctx, stage, batch, loss)}};
  stage.Backward(ctx, 0, {});
  for (Parameter* p : stage.Parameters()) {
    if (p->gradient.defined()) values.push_back(ToDoubles(p->gradient));
  }
  return values;
}

TEST_P(OnDevice, LossesAndGradientsAreThoseOfTheCpu) {
  const Case& c = GetParam();
  const CrossEntropyLoss cross_entropy;
  const EveryOutputLoss every_output;
  for (const LossFunction* loss : {static_cast<const LossFunction*>(&cross_entropy),
                                   static_cast<const LossFunction*>(&every_output)}) {
    const auto want = LossAndGradients(Device::Cpu(), c, *loss, false);
    const auto got = LossAndGradients(TestDevice(), c, *loss, false);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_LE(RelativeError(got[i], want[i]), c.tolerance) << "tensor " << i;
    }
    EXPECT_EQ(LossAndGradients(TestDevice(), c, *loss, true), got) << "activations computed again";
  }
}

// Logits of every token: the prompt at once, then token by token.
std::vector<double> Logits(Device device, const Case& c, MlaDecode mla) {
  constexpr int64_t kPageSize = 16;
  Context ctx(device);
  StageOptions options = WholeModel(c.config, c.dtype);
  options.mla_decode = mla;
  TransformerStage stage(ctx, c.config, options);
  FillStage(ctx, stage, 5);
  const TokenBatch batch = RandomBatch(c.config, {21, 18}, 3);
  KvCache cache(ctx, c.config, c.config.num_hidden_layers, 8, kPageSize, c.dtype);
  std::vector<std::vector<int32_t>> pages = {{cache.TakePage(), cache.TakePage()},
                                             {cache.TakePage(), cache.TakePage()}};
  std::vector<double> logits;
  for (int32_t begin = 0, end = 15; begin < 18; begin = end++) {
    DecodeBatch step;
    step.cu_seqlens = {0};
    step.pages_S = pages;
    for (int s = 0; s < 2; ++s) {
      for (int32_t i = begin; i < end; ++i) {
        step.logits_rows.push_back(static_cast<int32_t>(step.token_T.size()));
        step.token_T.push_back(batch.token_T[batch.cu_seqlens[s] + i]);
        step.position_T.push_back(i);
      }
      step.cu_seqlens.push_back(static_cast<int32_t>(step.token_T.size()));
    }
    const std::vector<double> rows = ToDoubles(stage.Decode(ctx, step, cache));
    logits.insert(logits.end(), rows.begin(), rows.end());
  }
  return logits;
}

TEST_P(OnDevice, DecodingGivesTheLogitsOfTheCpu) {
  const Case& c = GetParam();
  for (MlaDecode mla : {MlaDecode::kExpand, MlaDecode::kAbsorb}) {
    const std::vector<double> want = Logits(Device::Cpu(), c, mla);
    EXPECT_LE(RelativeError(Logits(TestDevice(), c, mla), want), c.tolerance);
  }
}

// Losses and gradient norms of a few steps, the same on every rank.
std::vector<double> Train(Device device, const Case& c, const MeshConfig& layout,
                          const GroupPtr& world) {
  Context ctx(device);
  const bool as_it_is = device.is_cpu() || world->size() == 1;  // as `hone train` has it
  parallel::Mesh mesh(layout, as_it_is ? world : parallel::MakeStagedGroup(ctx, world));
  TransformerStage stage(ctx, c.config, WholeModel(c.config, c.dtype), mesh.ep());
  FillStage(ctx, stage, 5, 0.2);
  TrainEngine::Options options;
  options.optimizer.clip = 0.3;
  TrainEngine engine(ctx, mesh, {&stage}, options);
  engine.SelfCheck("device");
  CrossEntropyLoss loss;
  std::vector<double> curve;
  for (int step = 0; step < 4; ++step) {
    std::vector<TokenBatch> batches;
    for (int i = 0; i < 4 / layout.dp; ++i) {
      const int index = mesh.dp_index() * 4 / layout.dp + i;
      batches.push_back(RandomBatch(c.config, {5, 3 + index}, index));
    }
    const TrainEngine::StepResult result = engine.Step(batches, loss, 0.003);
    EXPECT_FALSE(result.skipped);
    curve.push_back(result.loss);
    curve.push_back(result.gradient_norm);
  }
  return curve;
}

TEST_P(OnDevice, TrainsAsTheCpuDoes) {
  const Case& c = GetParam();
  const std::vector<double> want = Train(Device::Cpu(), c, {1, 1, 1}, parallel::MakeSingleGroup());
  EXPECT_LT(want[want.size() - 2], want[0]) << "the loss falls";
  const double tolerance = 10 * c.tolerance;
  EXPECT_LE(RelativeError(Train(TestDevice(), c, {1, 1, 1}, parallel::MakeSingleGroup()), want),
            tolerance);
  std::vector<double> shared;
  const MeshConfig two = {1, 2, c.config.is_moe() ? 2 : 1};
  parallel::RunThreadRanks(2, [&](GroupPtr world) {
    std::vector<double> mine = Train(TestDevice(), c, two, world);
    if (world->rank() == 0) shared = std::move(mine);
  });
  EXPECT_LE(RelativeError(shared, want), tolerance) << "two ranks that share the device";
}

}  // namespace
}  // namespace hone::model
