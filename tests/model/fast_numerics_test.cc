// Whole models whose products the CPU's matrix unit makes (Numerics::kFast, kFixedPoint): as near
// to f64 as f32 is.
#include <gtest/gtest.h>

#include <tuple>

#include "kernels/amx_gemm.h"
#include "tests/model/stage_testing.h"

namespace hone::model {
namespace {

// Wide enough that every linear layer is worth the unit's while.
ModelConfig Wide(ModelConfig c) {
  c.hidden_size = 160;
  c.intermediate_size = c.moe_intermediate_size = 192;
  c.head_dim = 40;
  c.vocab_size = 300;
  c.num_hidden_layers = 2;
  c.max_position_embeddings = 512;
  c.FillDerived();
  return c;
}

// The loss and every gradient of one forward and backward.
std::vector<std::vector<double>> LossAndGradients(const ModelConfig& config, DType dtype,
                                                  Numerics numerics) {
  Context ctx(Device::Cpu(), 2);
  ctx.numerics = numerics;
  TransformerStage stage(ctx, config, WholeModel(config, dtype));
  FillStage(ctx, stage, 5, 0.1);
  ZeroGradients(stage);
  const TokenBatch batch = RandomBatch(config, {250, 6, 300}, 3);
  std::vector<std::vector<double>> values = {{ForwardLoss(ctx, stage, batch, CrossEntropyLoss())}};
  stage.Backward(ctx, 0, {});
  for (Parameter* p : stage.Parameters()) {
    if (p->gradient.defined()) values.push_back(ToDoubles(p->gradient));
  }
  return values;
}

class FastNumericsTest : public testing::TestWithParam<std::tuple<ModelConfig, Numerics>> {};
INSTANTIATE_TEST_SUITE_P(Models, FastNumericsTest,
                         testing::Combine(testing::Values(Wide(TinyDense()), Wide(TinyTied()),
                                                          Wide(TinySoftmaxMoe())),
                                          testing::Values(Numerics::kFast, Numerics::kFixedPoint)));

TEST_P(FastNumericsTest, GradientsAreThoseOfF64ToF32sPrecision) {
  if (!kernels::HasAmx()) GTEST_SKIP() << "this build or this processor has no AMX";
  const auto& [config, numerics] = GetParam();
  const auto exact = LossAndGradients(config, DType::kF64, Numerics::kBatchInvariant);
  const auto chains = LossAndGradients(config, DType::kF32, Numerics::kBatchInvariant);
  const auto fast = LossAndGradients(config, DType::kF32, numerics);
  ASSERT_EQ(fast.size(), exact.size());
  EXPECT_NE(fast, chains);
  for (size_t i = 0; i < fast.size(); ++i) {
    EXPECT_LE(RelativeError(fast[i], exact[i]), 1e-5) << "tensor " << i;
  }
  EXPECT_EQ(fast, LossAndGradients(config, DType::kF32, numerics)) << "once more";
}

}  // namespace
}  // namespace hone::model
