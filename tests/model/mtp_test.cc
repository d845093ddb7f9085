// Multi-token prediction, the sequence balance loss and the bias update against PyTorch written
// from the paper (tests/fixtures/make_v3_extras_fixtures.py), and what that fixture does not reach.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "layer_testing.h"
#include "model/layers/multi_token_prediction.h"
#include "tests/read_json.h"

namespace hone::model {
namespace {

using nlohmann::json;

const json& Fixture() {
  static const json fixture = ReadJson(HONE_SOURCE_DIR "/tests/fixtures/v3_extras.json");
  return fixture;
}

ModelConfig FixtureConfig() {
  const json& f = Fixture();
  ModelConfig config = ModelConfig::FromHuggingFaceText(f.at("config").dump(), "v3_extras.json");
  config.mtp_loss_weight = f.at("mtp_loss_weight");
  config.balance_loss_alpha = f.at("balance_loss_alpha");
  config.bias_update_speed = f.at("bias_update_speed");
  return config;
}

// The script's wave().
std::vector<double> Wave(const std::string& name, int64_t count) {
  int64_t phase = 0;
  for (size_t k = 0; k < name.size(); ++k) phase += static_cast<int64_t>(k + 1) * name[k];
  std::vector<double> values(count);
  for (int64_t i = 0; i < count; ++i) {
    double x = static_cast<double>(i);
    values[i] = std::sin(static_cast<double>(phase % 1009) + 1.7 * x + 0.37 * x * x);
  }
  return values;
}

TokenBatch FixtureBatch() {
  const json& f = Fixture();
  TokenBatch batch;
  batch.token_T = f.at("tokens").get<std::vector<int32_t>>();
  batch.target_T = f.at("targets").get<std::vector<int32_t>>();
  batch.loss_weight_T = f.at("weights").get<std::vector<float>>();
  batch.cu_seqlens = {0};
  for (int32_t n : f.at("lengths")) batch.cu_seqlens.push_back(batch.cu_seqlens.back() + n);
  batch.position_T = PackedPositions(batch.cu_seqlens);
  return batch;
}

struct Mtp {
  Mtp(Context& ctx, DType dtype, bool checkpointing = false, std::vector<std::string> frozen = {})
      : config(FixtureConfig()),
        rope(kernels::MakeRopeTable(ctx, config.rope, config.max_position_embeddings,
                                    dtype == DType::kF64 ? DType::kF64 : DType::kF32)),
        builder(ctx, {.dtype = dtype, .with_gradients = true, .frozen = std::move(frozen)}) {
    Shape table = {config.vocab_size, config.hidden_size};
    using Init = ParameterBuilder::Init;
    Parameter* embedding = builder.Add("model.embed_tokens.weight", table, Init::kNormal);
    Parameter* head = builder.Add("lm_head.weight", table, Init::kNormal);
    mtp = std::make_unique<MultiTokenPrediction>(builder, config, rope, nullptr, *embedding, *head,
                                                 checkpointing);
    for (const auto& entry : builder.entries()) {
      Parameter& p = *entry.parameter;
      std::vector<double> values = Wave(p.spec.name, p.value.size());
      double mean = entry.init == Init::kOnes ? 1.0 : 0.0;
      for (double& v : values) v = p.spec.buffer ? static_cast<float>(0.1 * v) : mean + 0.4 * v;
      CopyTo(FromDoubles(ctx, values, p.value.shape(), DType::kF64), p.value);
    }
  }
  Tensor Hidden(Context& ctx, DType dtype) const {
    int64_t tokens = static_cast<int64_t>(FixtureBatch().token_T.size());
    return FromDoubles(ctx, Wave("hidden", tokens * config.hidden_size),
                       {tokens, config.hidden_size}, dtype);
  }
  // Forward and backward; dh.
  Tensor Train(Context& ctx, const Tensor& h_TD, const TokenBatch& batch) {
    RecordPtr saved;
    loss = mtp->Forward(ctx, h_TD, batch, {}, &saved);
    balance = mtp->feed_forward().TakeAuxiliaryLoss();
    return mtp->Backward(ctx, std::move(saved));
  }

  ModelConfig config;
  kernels::RopeTable rope;
  ParameterBuilder builder;
  std::unique_ptr<MultiTokenPrediction> mtp;
  double loss = 0, balance = 0;
};

class MtpFixture : public ::testing::TestWithParam<DType> {};

TEST_P(MtpFixture, LossesAndGradientsAreThePapers) {
  Context ctx;
  const json& f = Fixture();
  Mtp m(ctx, GetParam());
  const double bound = GetParam() == DType::kF64 ? 1e-11 : 1e-5;
  Tensor dh_TD = m.Train(ctx, m.Hidden(ctx, GetParam()), FixtureBatch());
  double loss = f.at("mtp_loss"), balance = f.at("balance_loss");
  EXPECT_NEAR(m.loss, loss, bound * loss);
  EXPECT_NEAR(m.balance, balance, bound * balance);
  EXPECT_LE(RelativeError(ToDoubles(dh_TD), f.at("hidden_gradient").get<std::vector<double>>()),
            bound);
  size_t compared = 0;
  for (const auto& entry : m.builder.entries()) {
    const Parameter& p = *entry.parameter;
    if (p.spec.buffer) continue;
    ASSERT_TRUE(f.at("gradients").contains(p.spec.name)) << p.spec.name;
    EXPECT_LE(RelativeError(ToDoubles(p.gradient),
                            f.at("gradients").at(p.spec.name).get<std::vector<double>>()),
              bound)
        << p.spec.name;
    ++compared;
  }
  EXPECT_EQ(compared, f.at("gradients").size());
}

TEST_P(MtpFixture, RoutingAndBiasUpdateAreThePapers) {
  Context ctx;
  const json& f = Fixture();
  Mtp m(ctx, GetParam());
  TokenBatch batch = FixtureBatch();
  std::vector<int32_t> routing_TK, without_last;
  RecordPtr saved;
  m.mtp->Forward(ctx, m.Hidden(ctx, GetParam()), batch, {{}, &routing_TK}, &saved);
  for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
    without_last.insert(without_last.end(), routing_TK.begin() + batch.cu_seqlens[s] * 2,
                        routing_TK.begin() + (batch.cu_seqlens[s + 1] - 1) * 2);
  }
  EXPECT_EQ(without_last, f.at("experts").get<std::vector<int32_t>>());
  m.mtp->feed_forward().UpdateBalance([](std::vector<double>&) {});
  for (const auto& entry : m.builder.entries()) {
    if (!entry.parameter->spec.buffer) continue;
    EXPECT_LE(RelativeError(ToDoubles(entry.parameter->value),
                            f.at("bias_after").get<std::vector<double>>()),
              1e-7);
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, MtpFixture, ::testing::Values(DType::kF32, DType::kF64),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

TEST(Mtp, GradientsByDifferences) {
  Context ctx;
  Mtp m(ctx, DType::kF64);
  TokenBatch batch = FixtureBatch();
  Tensor h_TD = m.Hidden(ctx, DType::kF64);
  std::vector<int32_t> routing_TK;
  m.mtp->Forward(ctx, h_TD, batch, {{}, &routing_TK}, nullptr);
  Tensor dh_TD = m.Train(ctx, h_TD, batch);
  ZeroGradients(m.builder);
  dh_TD = m.Train(ctx, h_TD, batch);
  auto loss = [&] {
    RecordPtr saved;
    // Only a forward that is kept counts the balance loss; its gradient of the head is not looked
    // at.
    Tensor head = m.builder.entries()[1].parameter->gradient, kept = ctx.Clone(head);
    double l = m.mtp->Forward(ctx, h_TD, batch, {routing_TK, nullptr}, &saved);
    CopyTo(kept, head);
    return l + m.mtp->feed_forward().TakeAuxiliaryLoss();
  };
  ExpectGradient("h", h_TD, dh_TD, loss, 200);
  ExpectParameterGradients(m.builder, loss, 40);
}

TEST(Mtp, LastTokensAndSingleTokensTakeNoPart) {
  Context ctx;
  Mtp m(ctx, DType::kF32);
  TokenBatch batch = FixtureBatch();
  Tensor h_TD = m.Hidden(ctx, DType::kF32);
  double before = m.mtp->Forward(ctx, h_TD, batch, {}, nullptr);
  // Neither h of a sequence's last token, nor its first target and weight, matter.
  for (size_t s = 0; s + 1 < batch.cu_seqlens.size(); ++s) {
    for (int64_t d = 0; d < h_TD.cols(); ++d) h_TD.row<float>(batch.cu_seqlens[s + 1] - 1)[d] = 9;
    batch.target_T[batch.cu_seqlens[s]] = 0;
    batch.loss_weight_T[batch.cu_seqlens[s]] = 5;
  }
  EXPECT_EQ(m.mtp->Forward(ctx, h_TD, batch, {}, nullptr), before);

  TokenBatch single;
  single.token_T = single.target_T = {1, 2};
  single.position_T = {0, 0};
  single.cu_seqlens = {0, 1, 2};
  single.loss_weight_T = {1, 1};
  EXPECT_EQ(ToDoubles(m.Train(ctx, h_TD.Slice(0, 2), single)),
            std::vector<double>(2 * m.config.hidden_size, 0.0));
  EXPECT_EQ(m.loss, 0.0);
  TokenBatch none;
  none.cu_seqlens = {0};
  m.Train(ctx, h_TD.Slice(0, 0), none);
  EXPECT_EQ(m.loss, 0.0);
}

TEST(Mtp, CheckpointingGivesTheSameBits) {
  Context ctx;
  Mtp plain(ctx, DType::kF32), checkpointed(ctx, DType::kF32, true);
  TokenBatch batch = FixtureBatch();
  Tensor h_TD = plain.Hidden(ctx, DType::kF32);
  EXPECT_TRUE(SameBits(plain.Train(ctx, h_TD, batch), checkpointed.Train(ctx, h_TD, batch)));
  EXPECT_EQ(plain.loss, checkpointed.loss);
  EXPECT_EQ(plain.balance, checkpointed.balance);
  ExpectSameGradients(plain.builder, checkpointed.builder);
}

TEST(Mtp, FrozenEmbeddingAndHeadChangeNoOtherGradient) {
  Context ctx;
  Mtp trained(ctx, DType::kF32), frozen(ctx, DType::kF32, false, {"model.embed_tokens", "lm_head"});
  TokenBatch batch = FixtureBatch();
  Tensor h_TD = trained.Hidden(ctx, DType::kF32);
  EXPECT_TRUE(SameBits(trained.Train(ctx, h_TD, batch), frozen.Train(ctx, h_TD, batch)));
  ExpectSameGradients(trained.builder, frozen.builder, 2);
}

// A spliced row stands in for the embedding of its token, which then gets no gradient.
TEST(Mtp, SplicedEmbeddingsReplaceTheTable) {
  Context ctx;
  Mtp m(ctx, DType::kF32), spliced(ctx, DType::kF32);
  TokenBatch batch = FixtureBatch();
  Tensor h_TD = m.Hidden(ctx, DType::kF32);
  Tensor want = m.Train(ctx, h_TD, batch);
  int32_t token = batch.token_T[3];
  Tensor table = m.builder.entries()[0].parameter->value;
  batch.embedding_VD = ctx.Clone(table.Slice(token, token + 1));
  batch.embedding_slot_V = {3};
  batch.token_T[3] = (token + 1) % static_cast<int32_t>(m.config.vocab_size);
  EXPECT_TRUE(SameBits(spliced.Train(ctx, h_TD, batch), want));
  EXPECT_EQ(spliced.loss, m.loss);
  Tensor a = m.builder.entries()[0].parameter->gradient,
         b = spliced.builder.entries()[0].parameter->gradient;
  EXPECT_FALSE(SameBits(a.Slice(token, token + 1), b.Slice(token, token + 1)));
  EXPECT_TRUE(SameBits(a.Slice(batch.token_T[3], batch.token_T[3] + 1),
                       b.Slice(batch.token_T[3], batch.token_T[3] + 1)));
}

}  // namespace
}  // namespace hone::model
