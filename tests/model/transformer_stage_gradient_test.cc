// Every gradient of whole small models against central differences in f64, through the interface
// the pipeline uses.
#include "tests/model/stage_testing.h"

namespace hone::model {
namespace {

struct Case {
  std::string name;
  ModelConfig config;
  bool cross_entropy;
};
std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

ModelConfig WithoutMtp(ModelConfig c) {
  c.num_nextn_predict_layers = 0;
  return c;
}
ModelConfig TiedV3() {
  ModelConfig c = TinyV3();
  c.tie_word_embeddings = true;
  c.q_lora_rank = 0;
  return c;
}

class StageGradientTest : public testing::TestWithParam<Case> {};

TEST_P(StageGradientTest, MatchesFiniteDifferences) {
  const Case& c = GetParam();
  Context ctx;
  TransformerStage stage(ctx, c.config, WholeModel(c.config, DType::kF64));
  FillStage(ctx, stage, 11);
  const TokenBatch batch = RandomBatch(c.config, {7, 1, 5}, 3);
  const CrossEntropyLoss cross_entropy;
  const EveryOutputLoss every_output;
  const LossFunction& loss = c.cross_entropy ? static_cast<const LossFunction&>(cross_entropy)
                                             : static_cast<const LossFunction&>(every_output);
  auto total = [&] { return ForwardLoss(ctx, stage, batch, loss); };
  ZeroGradients(stage);
  total();
  EXPECT_TRUE(stage.Backward(ctx, 0, {}).empty());
  std::vector<Tensor> analytic = Gradients(ctx, stage);
  size_t i = 0;
  for (Parameter* p : stage.Parameters()) {
    if (!p->gradient.defined()) continue;
    ExpectGradient(p->spec.name, p->value, analytic[i++], total, 12);
  }
  EXPECT_EQ(i, analytic.size());
}

INSTANTIATE_TEST_SUITE_P(Families, StageGradientTest,
                         testing::Values(Case{"dense", TinyDense(), true},
                                         Case{"dense_policy", TinyDense(), false},
                                         Case{"tied_bias_qknorm", TinyTied(), true},
                                         Case{"tied_value_policy", TinyTied(), false},
                                         Case{"softmax_moe", TinySoftmaxMoe(), true},
                                         Case{"v3_mtp", TinyV3(), true},
                                         Case{"v3_tied_mtp", TiedV3(), true},
                                         Case{"v3_policy", WithoutMtp(TinyV3()), false}),
                         [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

}  // namespace
}  // namespace hone::model
