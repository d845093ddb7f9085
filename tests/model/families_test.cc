// Every family against transformers: logits, loss and all gradients of small random models in f32
// (fixtures/make_model_fixtures.py), and models trained elsewhere.
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "tests/model/stage_testing.h"
#include "tests/read_json.h"

namespace hone::model {
namespace {

constexpr double kTolerance = 1e-5;  // max|Δ| / max|ref| of each tensor

std::vector<int32_t> Ints(const SafetensorsReader& reader, const std::string& name) {
  return runtime::ToVector<int32_t>(reader.Get(name));
}

TokenBatch FixtureBatch(const SafetensorsReader& expected) {
  TokenBatch batch;
  batch.token_T = Ints(expected, "token");
  batch.target_T = Ints(expected, "target");
  batch.cu_seqlens = Ints(expected, "cu_seqlens");
  batch.loss_weight_T = runtime::ToVector<float>(expected.Get("weight"));
  batch.position_T = PackedPositions(batch.cu_seqlens);
  return batch;
}

// Logits of every token, by decoding each sequence in one go.
Tensor AllLogits(Context& ctx, TransformerStage& stage, const TokenBatch& batch) {
  const int64_t page_size = 64;
  KvCache cache(ctx, stage.config(), stage.config().num_hidden_layers, batch.tokens() / 64 + 16,
                page_size, stage.options().dtype);
  DecodeBatch step;
  step.token_T = batch.token_T;
  step.position_T = batch.position_T;
  step.cu_seqlens = batch.cu_seqlens;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    auto& pages = step.pages_S.emplace_back();
    const int64_t length = batch.cu_seqlens[s + 1] - batch.cu_seqlens[s];
    for (int64_t t = 0; t < length; t += page_size) pages.push_back(cache.TakePage());
  }
  for (int32_t t = 0; t < batch.tokens(); ++t) step.logits_rows.push_back(t);
  return stage.Decode(ctx, step, cache);
}

class FamilyFixtureTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, FamilyFixtureTest,
                         testing::Values("llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3",
                                         "deepseek_v3_no_q_lora"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(FamilyFixtureTest, LogitsLossAndGradientsAreTheOnesOfTransformers) {
  const std::string folder =
      std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/" + GetParam() + "/";
  const ModelConfig config = ModelConfig::FromHuggingFace(folder + "config.json");
  const SafetensorsReader expected(folder + "expected.safetensors");
  const TokenBatch batch = FixtureBatch(expected);
  Context ctx;
  TransformerStage stage(ctx, config, WholeModel(config, DType::kF32));
  LoadHuggingFace(folder, stage);

  EXPECT_LE(
      RelativeError(ToDoubles(AllLogits(ctx, stage, batch)), ToDoubles(expected.Get("logits"))),
      kTolerance);
  const CrossEntropyLoss loss;
  const double got = ForwardLoss(ctx, stage, batch, loss);
  const double want = ToDoubles(expected.Get("loss"))[0];
  EXPECT_NEAR(got, want, kTolerance * want);
  stage.Backward(ctx, 0, {});
  size_t compared = 0;
  for (Parameter* p : stage.Parameters()) {
    if (!p->gradient.defined()) continue;
    const Tensor reference = expected.Get("gradient/" + p->spec.name);
    EXPECT_EQ(reference.shape(), p->gradient.shape()) << p->spec.name;
    EXPECT_LE(RelativeError(ToDoubles(p->gradient), ToDoubles(reference)), kTolerance)
        << p->spec.name;
    ++compared;
  }
  size_t gradients = 0;
  for (const SafetensorsEntry& e : expected.entries()) gradients += e.name.starts_with("gradient/");
  EXPECT_EQ(compared, gradients);
}

TokenBatch OneSequence(const std::vector<int32_t>& ids) {
  TokenBatch batch;
  batch.token_T = ids;
  batch.cu_seqlens = {0, static_cast<int32_t>(ids.size())};
  batch.position_T = PackedPositions(batch.cu_seqlens);
  batch.target_T.assign(ids.begin() + 1, ids.end());
  batch.target_T.push_back(TokenBatch::kNoTarget);
  batch.loss_weight_T.assign(ids.size(), 1.0f);
  batch.loss_weight_T.back() = 0.0f;
  return batch;
}

// The logits that `file` in a fixture's folder has for its tokens, against the model loaded there.
void ExpectLogits(const std::string& name, const std::string& file) {
  const std::string folder = std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/" + name + "/";
  const ModelConfig config = ModelConfig::FromHuggingFace(folder + "config.json");
  const SafetensorsReader expected(folder + file);
  Context ctx;
  StageOptions options = WholeModel(config, DType::kF32);
  options.with_gradients = false;
  TransformerStage stage(ctx, config, options);
  LoadHuggingFace(folder, stage);
  const Tensor logits = AllLogits(ctx, stage, OneSequence(Ints(expected, "token")));
  EXPECT_LE(RelativeError(ToDoubles(logits), ToDoubles(expected.Get("logits"))), kTolerance);
}

// 60 tokens of models whose rope is scaled from 16: with llama3's rule and with YaRN.
TEST(ScaledRopeTest, PromptsPastTheOriginalLengthGiveTheLogitsOfTransformers) {
  for (const char* name : {"llama", "deepseek_v3"}) {
    SCOPED_TRACE(name);
    ExpectLogits(name, "long.safetensors");
  }
}

TEST(StoredFormatTest, Fp8WithBlockFactorsAndF16GiveTheLogitsOfTransformers) {
  for (const char* name : {"deepseek_v3_fp8", "llama_f16"}) {
    SCOPED_TRACE(name);
    ExpectLogits(name, "expected.safetensors");
  }
}

// Folder of a model that was trained elsewhere, or "" when there is none on this machine.
std::string OpenWeights(const std::string& name) {
  const char* data = std::getenv("HONE_DATA");
  const std::string folder = data ? std::string(data) + "/weights/" + name : "";
  return std::filesystem::exists(folder) ? folder : "";
}

TEST(TrainedModelTest, Stories260KGivesItsGoldenLogitsLossesAndText) {
  const std::string folder = OpenWeights("stories260K");
  if (folder.empty()) GTEST_SKIP() << "needs HONE_DATA/weights/stories260K";
  const nlohmann::json golden = ReadJson(folder + "/golden.json");
  const ModelConfig config = ModelConfig::FromHuggingFace(folder + "/hf/config.json");
  Context ctx;
  StageOptions options = WholeModel(config, DType::kF32);
  options.with_gradients = false;
  TransformerStage stage(ctx, config, options);
  LoadHuggingFace(folder + "/hf", stage);

  const auto greedy = golden["greedy_ids"].get<std::vector<int32_t>>();
  const Tensor logits = AllLogits(ctx, stage, OneSequence(greedy));
  for (size_t t = 0; t < golden["logits_first_positions"].size(); ++t) {
    const auto want = golden["logits_first_positions"][t].get<std::vector<double>>();
    EXPECT_LE(RelativeError(ToDoubles(logits.Slice(t, t + 1)), want), 1e-4) << "position " << t;
  }
  stage.BeginStep(/*keep_head_output=*/true);
  for (const auto& c : golden["cases"]) {
    const auto ids = c["ids"].get<std::vector<int32_t>>();
    const auto nll = c["nll"].get<std::vector<double>>();
    stage.Forward(ctx, 0, OneSequence(ids), {}, nullptr, false);
    const std::vector<double> logp = ToDoubles(stage.TakeOutcome(0).head.logp_T);
    ASSERT_EQ(nll.size() + 1, logp.size());
    for (size_t t = 0; t < nll.size(); ++t) EXPECT_NEAR(-logp[t], nll[t], 1e-4) << "token " << t;
  }

  // Token by token, from BOS alone.
  KvCache cache(ctx, config, config.num_hidden_layers, 16, 16, DType::kF32);
  std::vector<int32_t> ids = {greedy[0]}, pages;
  while (ids.size() < greedy.size()) {
    const auto position = static_cast<int32_t>(ids.size()) - 1;
    if (position % 16 == 0) pages.push_back(cache.TakePage());
    const Tensor row = stage.Decode(ctx, {{ids.back()}, {position}, {0, 1}, {pages}, {0}}, cache);
    const std::vector<float> z = runtime::ToVector<float>(row);
    ids.push_back(static_cast<int32_t>(std::max_element(z.begin(), z.end()) - z.begin()));
  }
  EXPECT_EQ(ids, greedy);
}

TEST(TrainedModelTest, VerlTinyLlamaGivesItsGoldenLogits) {
  const std::string folder = OpenWeights("verl_tiny_llama");
  if (folder.empty()) GTEST_SKIP() << "needs HONE_DATA/weights/verl_tiny_llama";
  const ModelConfig config = ModelConfig::FromHuggingFace(folder + "/config.json");
  Context ctx;
  TransformerStage stage(ctx, config, WholeModel(config, DType::kF32));
  LoadHuggingFace(folder, stage);
  for (const auto& c : ReadJson(folder + "/golden.json")) {
    const Tensor logits = AllLogits(ctx, stage, OneSequence(c["ids"].get<std::vector<int32_t>>()));
    for (size_t t = 0; t < c["logits"].size(); ++t) {
      const auto want = c["logits"][t].get<std::vector<double>>();
      EXPECT_LE(RelativeError(ToDoubles(logits.Slice(t, t + 1)), want), 1e-4) << "position " << t;
    }
  }
}

}  // namespace
}  // namespace hone::model
