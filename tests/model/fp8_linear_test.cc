// What Context::fp8 changes in the layers, and what it leaves alone.
#include <gtest/gtest.h>

#include "kernels/fp8/fp8.h"
#include "kernels/linear/linear.h"
#include "model/layers/layer.h"
#include "runtime/philox.h"
#include "tests/model/stage_testing.h"

namespace hone::model {
namespace {

void Fill(const Tensor& t, uint64_t seed) {
  RandomStream stream({seed});
  for (int64_t i = 0; i < t.size(); ++i) {
    t.data<float>()[i] = static_cast<float>(stream.Normal(static_cast<uint64_t>(i)));
  }
}

struct Products {
  std::vector<double> y, dx, dw;
};

// A layer's three products, the weight's gradient by way of the queue.
Products RunLayer(bool fp8, bool bias) {
  Context ctx;
  ctx.fp8 = fp8;
  ParameterBuilder builder(ctx, {});
  Linear layer(builder, "layer", 144, 48, bias);
  for (size_t i = 0; i < builder.entries().size(); ++i) {
    Fill(builder.entries()[i].parameter->value, 10 + i);
  }
  Tensor x = ctx.Empty({5, 144}, DType::kF32), dy = ctx.Empty({5, 48}, DType::kF32);
  Fill(x, 1);
  Fill(dy, 2);
  WeightGradientQueue queue;
  ctx.weight_gradients = &queue;
  Products p;
  p.y = runtime::ToDoubles(layer.Forward(ctx, x));
  p.dx = runtime::ToDoubles(layer.Backward(ctx, dy, x));
  ctx.fp8 = !fp8;  // decided when it was pushed
  for (auto& work : queue) work();
  p.dw = runtime::ToDoubles(layer.weight().gradient);

  Tensor dw = ctx.Zeros({48, 144}, DType::kF32);
  const Tensor& w = layer.weight().value;
  if (fp8 && !bias) {
    EXPECT_EQ(p.y, runtime::ToDoubles(kernels::Fp8Linear(ctx, x, w)));
    EXPECT_EQ(p.dx, runtime::ToDoubles(kernels::Fp8LinearInputGradient(ctx, dy, w)));
    kernels::Fp8LinearWeightGradient(ctx, dy, x, dw);
    EXPECT_EQ(p.dw, runtime::ToDoubles(dw));
  }
  return p;
}

TEST(Fp8Layers, LinearWithoutABiasMultipliesInFp8) {
  Products fp8 = RunLayer(true, false), f32 = RunLayer(false, false);
  EXPECT_NE(fp8.y, f32.y);
  EXPECT_NE(fp8.dx, f32.dx);
  EXPECT_NE(fp8.dw, f32.dw);
}

TEST(Fp8Layers, LinearWithABiasDoesNot) {
  Products fp8 = RunLayer(true, true), f32 = RunLayer(false, true);
  EXPECT_EQ(fp8.y, f32.y);
  EXPECT_EQ(fp8.dx, f32.dx);
  EXPECT_EQ(fp8.dw, f32.dw);
}

// What a stage makes of embeddings alone: its blocks add nothing.
std::vector<std::vector<double>> OutputsOfHeads(bool fp8) {
  Context ctx;
  ctx.fp8 = fp8;
  ModelConfig config = TinyDense();
  config.value_head = true;
  TransformerStage stage(ctx, config, WholeModel(config, DType::kF32));
  FillStage(ctx, stage, 5);
  ZeroGradients(stage);
  for (Parameter* p : stage.Parameters()) {
    const std::string& name = p->spec.name;
    if (!name.ends_with("o_proj.weight") && !name.ends_with("down_proj.weight")) continue;
    runtime::FillZero(p->value.raw(), p->value.device(), p->value.bytes(), nullptr);
  }
  const TokenBatch batch = RandomBatch(config, {9, 4}, 3);
  std::vector<std::vector<double>> values = {{ForwardLoss(ctx, stage, batch, EveryOutputLoss())}};
  stage.Backward(ctx, 0, {});
  for (Parameter* p : stage.Parameters()) {
    const bool head = p->spec.name == "value_head.weight" || p->spec.name == "lm_head.weight" ||
                      p->spec.name == "model.norm.weight";
    if (head) values.push_back(ToDoubles(p->gradient));
  }
  return values;
}

TEST(Fp8Layers, HeadsDoNot) {
  const auto outputs = OutputsOfHeads(true);
  EXPECT_EQ(outputs.size(), 4u);
  EXPECT_EQ(outputs, OutputsOfHeads(false));
}

}  // namespace
}  // namespace hone::model
