// The expert block: gradients, against a plain loop over tokens, over ep ranks, and the balance
// rules.
#include "model/layers/moe_block.h"

#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "layer_testing.h"

namespace hone::model {
namespace {

using Count = FeedForward::MoeInput::Count;

ModelConfig TinyConfig(Family family) {
  ModelConfig config;
  config.family = family;
  config.hidden_size = 11;
  config.n_routed_experts = 8;
  config.num_experts_per_tok = 3;
  config.moe_intermediate_size = 7;
  if (family == Family::kDeepSeekV3) {
    config.router = kernels::RouterConfig::Kind::kSigmoidGroups;
    config.n_shared_experts = 2;
    config.n_group = 4;
    config.topk_group = 2;
    config.routed_scaling_factor = 2.5;
    config.balance_loss_alpha = 0.7;
  }
  return config;
}

struct Moe {
  Moe(Context& ctx, const ModelConfig& config, DType dtype, parallel::GroupPtr ep = nullptr)
      : builder(ctx, {.dtype = dtype, .with_gradients = true, .frozen = {}}),
        block(MakeMoeBlock(
            builder, "mlp", config,
            ep ? std::make_shared<parallel::ExpertDispatcher>(ep, config.n_routed_experts)
               : nullptr)) {
    FillParameters(ctx, builder, 21);
  }
  const Parameter& Find(const std::string& name) const {
    for (const auto& entry : builder.entries()) {
      if (entry.parameter->spec.name == name) return *entry.parameter;
    }
    throw Error("no parameter " + name);
  }
  ParameterBuilder builder;
  std::unique_ptr<FeedForward> block;
};

// A batch of `tokens` in three sequences with loss weights that sum to about one.
struct Batch {
  explicit Batch(int32_t tokens) : cu_seqlens{0, tokens / 4, tokens / 4, tokens}, weight_T(tokens) {
    for (int32_t t = 0; t < tokens; ++t) weight_T[t] = t % 3 ? 1.3f / tokens : 0.f;
  }
  FeedForward::MoeInput Input(Count count = Count::kIfSaved,
                              std::span<const int32_t> replay = {}) const {
    FeedForward::MoeInput input;
    input.replay_TK = replay;
    input.cu_seqlens = cu_seqlens;
    input.loss_weight_T = weight_T;
    input.count = count;
    return input;
  }
  std::vector<int32_t> cu_seqlens;
  std::vector<float> weight_T;
};

void CheckGradients(Family family) {
  Context ctx;
  ModelConfig config = TinyConfig(family);
  Moe moe(ctx, config, DType::kF64);
  constexpr int32_t kTokens = 13;
  Batch batch(kTokens);
  Tensor x_TD = RandomTensor(ctx, {kTokens, config.hidden_size}, DType::kF64, 1);
  Tensor dy_TD = RandomTensor(ctx, {kTokens, config.hidden_size}, DType::kF64, 2);
  std::vector<int32_t> chosen;
  FeedForward::MoeInput recording = batch.Input(Count::kNo);
  recording.routing_TK = &chosen;
  moe.block->Forward(ctx, x_TD, recording, nullptr);
  ASSERT_EQ(chosen.size(), kTokens * 3u);

  // The choice is held, as a step of differences could cross a tie.
  auto loss = [&] {
    double y = Dot(moe.block->Forward(ctx, x_TD, batch.Input(Count::kYes, chosen), nullptr), dy_TD);
    return y + moe.block->TakeAuxiliaryLoss();
  };
  RecordPtr saved;
  moe.block->Forward(ctx, x_TD, batch.Input(Count::kIfSaved, chosen), &saved);
  moe.block->TakeAuxiliaryLoss();
  Tensor dx_TD = moe.block->Backward(ctx, dy_TD, std::move(saved));
  ExpectGradient("x", x_TD, dx_TD, loss, 200);
  ExpectParameterGradients(moe.builder, loss, 100);
}
TEST(MoeBlock, GradientsDeepSeekV3) { CheckGradients(Family::kDeepSeekV3); }
TEST(MoeBlock, GradientsQwen3) { CheckGradients(Family::kQwen3Moe); }

// y of one token by the definition, given its experts and weights.
std::vector<double> PlainMlp(const std::vector<double>& x, const double* gate, const double* up,
                             const double* down, int64_t f) {
  int64_t d = static_cast<int64_t>(x.size());
  std::vector<double> y(d);
  for (int64_t i = 0; i < f; ++i) {
    double g = 0, u = 0;
    for (int64_t k = 0; k < d; ++k) {
      g += gate[i * d + k] * x[k];
      u += up[i * d + k] * x[k];
    }
    double h = g / (1 + std::exp(-g)) * u;
    for (int64_t k = 0; k < d; ++k) y[k] += down[k * f + i] * h;
  }
  return y;
}

// V3's block, one token at a time and every expert looked at: nothing can be dropped here.
std::vector<double> PlainMoe(const Moe& moe, const ModelConfig& config, const Tensor& x_TD) {
  int64_t d = config.hidden_size, f = config.moe_intermediate_size, experts = 8;
  auto values = [&](const std::string& name) { return ToDoubles(moe.Find("mlp." + name).value); };
  std::vector<double> gate = values("gate.weight"), bias = values("gate.e_score_correction_bias");
  std::vector<double> eg = values("experts.gate_proj.weight"),
                      eu = values("experts.up_proj.weight"),
                      ed = values("experts.down_proj.weight");
  std::vector<double> sg = values("shared_experts.gate_proj.weight"),
                      su = values("shared_experts.up_proj.weight"),
                      sd = values("shared_experts.down_proj.weight");
  std::vector<double> x_all = ToDoubles(x_TD), out;
  for (int64_t t = 0; t < x_TD.dim(0); ++t) {
    std::vector<double> x(x_all.begin() + t * d, x_all.begin() + (t + 1) * d), score(experts);
    for (int64_t e = 0; e < experts; ++e) {
      double z = 0;
      for (int64_t k = 0; k < d; ++k) z += gate[e * d + k] * x[k];
      score[e] = 1 / (1 + std::exp(-z));
    }
    std::vector<std::pair<double, int64_t>> groups, allowed;
    for (int64_t g = 0; g < 4; ++g) {  // groups of two: both count
      groups.emplace_back(-(score[2 * g] + bias[2 * g] + score[2 * g + 1] + bias[2 * g + 1]), g);
    }
    std::sort(groups.begin(), groups.end());
    for (int i = 0; i < 2; ++i) {
      for (int64_t e : {2 * groups[i].second, 2 * groups[i].second + 1}) {
        allowed.emplace_back(-(score[e] + bias[e]), e);
      }
    }
    std::sort(allowed.begin(), allowed.end());
    double sum = 0;
    for (int i = 0; i < 3; ++i) sum += score[allowed[i].second];
    std::vector<double> y = PlainMlp(x, sg.data(), su.data(), sd.data(), 2 * f);
    for (int i = 0; i < 3; ++i) {
      int64_t e = allowed[i].second;
      std::vector<double> part = PlainMlp(x, &eg[e * f * d], &eu[e * f * d], &ed[e * f * d], f);
      for (int64_t k = 0; k < d; ++k) y[k] += 2.5 * score[e] / sum * part[k];
    }
    out.insert(out.end(), y.begin(), y.end());
  }
  return out;
}

TEST(MoeBlock, EveryTokenGetsItsExpertsHoweverManyWantTheSame) {
  Context ctx;
  ModelConfig config = TinyConfig(Family::kDeepSeekV3);
  Moe moe(ctx, config, DType::kF64);
  Tensor x_TD = RandomTensor(ctx, {67, config.hidden_size}, DType::kF64, 5);
  EXPECT_LE(RelativeError(ToDoubles(moe.block->Forward(ctx, x_TD, {}, nullptr)),
                          PlainMoe(moe, config, x_TD)),
            1e-12);
  // A bias that sends all tokens to the same experts.
  Tensor bias = moe.Find("mlp.gate.e_score_correction_bias").value;
  for (int e : {2, 3, 5}) bias.data<double>()[e] = 10;
  EXPECT_LE(RelativeError(ToDoubles(moe.block->Forward(ctx, x_TD, {}, nullptr)),
                          PlainMoe(moe, config, x_TD)),
            1e-12);
}

// What one rank's tokens give: output, input gradient, and gradients by global slab.
struct RankResult {
  std::vector<double> y, dx;
  double auxiliary = 0;
  std::map<std::string, std::vector<double>> gradient, bias;
};

RankResult RunRank(Context& ctx, const ModelConfig& config, DType dtype, parallel::GroupPtr ep,
                   const std::vector<int>& token_counts, int mine) {
  Moe moe(ctx, config, dtype, ep);
  RankResult result;
  for (int r = 0; r < static_cast<int>(token_counts.size()); ++r) {
    if (mine >= 0 && r != mine) continue;  // mine < 0: one rank does all, batch by batch
    Batch batch(token_counts[r]);
    Shape shape = {token_counts[r], config.hidden_size};
    Tensor x_TD = RandomTensor(ctx, shape, dtype, 100 + r);
    Tensor dy_TD = RandomTensor(ctx, shape, dtype, 200 + r);
    RecordPtr saved;
    std::vector<double> y = ToDoubles(moe.block->Forward(ctx, x_TD, batch.Input(), &saved));
    std::vector<double> dx = ToDoubles(moe.block->Backward(ctx, dy_TD, std::move(saved)));
    result.y.insert(result.y.end(), y.begin(), y.end());
    result.dx.insert(result.dx.end(), dx.begin(), dx.end());
  }
  result.auxiliary = moe.block->TakeAuxiliaryLoss();
  moe.block->UpdateBalance([&](std::vector<double>& count) {
    if (!ep) return;
    Tensor t = FromDoubles(ctx, count, {static_cast<int64_t>(count.size())}, DType::kF64);
    ep->AllReduce(t)->Wait();
    count = ToDoubles(t);
  });
  for (const auto& entry : moe.builder.entries()) {
    const Parameter& p = *entry.parameter;
    if (p.spec.buffer) result.bias[p.spec.name] = ToDoubles(p.value);
    if (p.gradient.defined()) result.gradient[p.spec.name] = ToDoubles(p.gradient);
  }
  return result;
}

// Ranks' results put together: expert slabs are laid end to end, the rest is summed.
RankResult Join(const std::vector<RankResult>& ranks) {
  RankResult all = ranks[0];
  for (size_t r = 1; r < ranks.size(); ++r) {
    all.y.insert(all.y.end(), ranks[r].y.begin(), ranks[r].y.end());
    all.dx.insert(all.dx.end(), ranks[r].dx.begin(), ranks[r].dx.end());
    all.auxiliary += ranks[r].auxiliary;
    for (auto& [name, values] : all.gradient) {
      const std::vector<double>& more = ranks[r].gradient.at(name);
      if (name.find(".experts.") != std::string::npos) {
        values.insert(values.end(), more.begin(), more.end());
      } else {
        for (size_t i = 0; i < values.size(); ++i) values[i] += more[i];
      }
    }
    EXPECT_EQ(all.bias, ranks[r].bias) << "replicas of the bias differ";
  }
  return all;
}

TEST(MoeBlock, ExpertParallelRanksGiveWhatOneGives) {
  for (Family family : {Family::kDeepSeekV3, Family::kQwen3Moe}) {
    ModelConfig config = TinyConfig(family);
    for (int ep : {2, 4}) {
      for (DType dtype : {DType::kF64, DType::kF32}) {
        std::vector<int> token_counts = {9, 0, 21, 5};
        token_counts.resize(ep);
        Context one;
        RankResult want = RunRank(one, config, dtype, nullptr, token_counts, -1);
        std::vector<RankResult> ranks(ep);
        parallel::RunThreadRanks(ep, [&](parallel::GroupPtr group) {
          Context ctx;
          ranks[group->rank()] = RunRank(ctx, config, dtype, group, token_counts, group->rank());
        });
        RankResult got = Join(ranks);
        EXPECT_EQ(got.y, want.y) << "the forward's bits differ at ep " << ep;
        EXPECT_EQ(got.bias, want.bias);
        double bound = dtype == DType::kF64 ? 1e-12 : 1e-5;
        EXPECT_LE(RelativeError(got.dx, want.dx), bound);
        EXPECT_NEAR(got.auxiliary, want.auxiliary, bound);
        for (const auto& [name, values] : want.gradient) {
          EXPECT_LE(RelativeError(got.gradient.at(name), values), bound) << name << " ep " << ep;
        }
      }
    }
  }
}

// Counts by hand from the recorded choices; three forwards of which one is a recomputation.
TEST(MoeBlock, BiasMovesByTheSignOfTheLoadAndRecomputationIsNotCounted) {
  Context ctx;
  ModelConfig config = TinyConfig(Family::kDeepSeekV3);
  config.bias_update_speed = 0.25;
  Moe moe(ctx, config, DType::kF32);
  Batch batch(19);
  Tensor x_TD = RandomTensor(ctx, {19, config.hidden_size}, DType::kF32, 5);
  std::vector<int32_t> chosen;
  FeedForward::MoeInput first = batch.Input(Count::kYes);
  first.routing_TK = &chosen;
  Tensor y = moe.block->Forward(ctx, x_TD, first, nullptr);
  RecordPtr saved;
  Tensor again = moe.block->Forward(ctx, x_TD, batch.Input(Count::kNo, chosen), &saved);
  EXPECT_TRUE(SameBits(y, again));
  moe.block->Forward(ctx, x_TD, batch.Input(), nullptr);  // evaluation: counts nothing

  std::vector<double> want = ToDoubles(moe.Find("mlp.gate.e_score_correction_bias").value);
  std::vector<double> count(8);
  for (int32_t e : chosen) ++count[e];
  count[3] += 100;  // what other replicas saw
  double mean = (19 * 3 + 100) / 8.0;
  for (int e = 0; e < 8; ++e) {
    want[e] = static_cast<float>(want[e] + 0.25 * (count[e] < mean) - 0.25 * (count[e] > mean));
  }
  moe.block->UpdateBalance([&](std::vector<double>& seen) {
    seen[3] += 100;
    EXPECT_EQ(seen, count);
  });
  EXPECT_EQ(ToDoubles(moe.Find("mlp.gate.e_score_correction_bias").value), want);
  // All counted tokens are used up: the next step starts from none.
  moe.block->UpdateBalance(
      [&](std::vector<double>& seen) { EXPECT_EQ(seen, std::vector<double>(8, 0.0)); });
  EXPECT_EQ(ToDoubles(moe.Find("mlp.gate.e_score_correction_bias").value), want);
}

TEST(MoeBlock, RecomputationGivesTheSameBitsAndOneAuxiliaryLoss) {
  Context ctx;
  ModelConfig config = TinyConfig(Family::kDeepSeekV3);
  Batch batch(19);
  Tensor x_TD = RandomTensor(ctx, {19, config.hidden_size}, DType::kF32, 5);
  Tensor dy_TD = RandomTensor(ctx, {19, config.hidden_size}, DType::kF32, 6);
  Moe plain(ctx, config, DType::kF32), recomputed(ctx, config, DType::kF32);
  RecordPtr saved;
  plain.block->Forward(ctx, x_TD, batch.Input(), &saved);
  Tensor want = plain.block->Backward(ctx, dy_TD, std::move(saved));
  recomputed.block->Forward(ctx, x_TD, batch.Input(Count::kYes), nullptr);
  RecordPtr late;
  recomputed.block->Forward(ctx, x_TD, batch.Input(Count::kNo), &late);
  Tensor got = recomputed.block->Backward(ctx, dy_TD, std::move(late));
  EXPECT_TRUE(SameBits(got, want));
  double auxiliary = plain.block->TakeAuxiliaryLoss();
  EXPECT_GT(auxiliary, 0.0);
  EXPECT_EQ(recomputed.block->TakeAuxiliaryLoss(), auxiliary);
  EXPECT_EQ(plain.block->TakeAuxiliaryLoss(), 0.0);
  ExpectSameGradients(plain.builder, recomputed.builder);
}

TEST(MoeBlock, DeferredWeightGradientsAreTheSame) {
  Context ctx;
  ModelConfig config = TinyConfig(Family::kDeepSeekV3);
  Batch batch(19);
  Tensor x_TD = RandomTensor(ctx, {19, config.hidden_size}, DType::kF32, 5);
  Tensor dy_TD = RandomTensor(ctx, {19, config.hidden_size}, DType::kF32, 6);
  Moe now(ctx, config, DType::kF32), later(ctx, config, DType::kF32);
  RecordPtr saved;
  now.block->Forward(ctx, x_TD, batch.Input(), &saved);
  Tensor want = now.block->Backward(ctx, dy_TD, std::move(saved));

  runtime::WeightGradientQueue queue;
  ctx.weight_gradients = &queue;
  later.block->Forward(ctx, x_TD, batch.Input(), &saved);
  EXPECT_TRUE(SameBits(later.block->Backward(ctx, dy_TD, std::move(saved)), want));
  for (const auto& entry : later.builder.entries()) {
    if (!entry.parameter->gradient.defined()) continue;
    std::vector<double> g = ToDoubles(entry.parameter->gradient);
    EXPECT_EQ(g, std::vector<double>(g.size(), 0.0)) << entry.parameter->spec.name;
  }
  for (auto& work : queue) work();
  ctx.weight_gradients = nullptr;
  ExpectSameGradients(now.builder, later.builder);
}

// Replaying other experts than the router would choose is obeyed, and weighs them by the router's
// scores.
TEST(MoeBlock, ReplayedExpertsAreUsed) {
  Context ctx;
  ModelConfig config = TinyConfig(Family::kDeepSeekV3);
  Moe moe(ctx, config, DType::kF32);
  Tensor x_TD = RandomTensor(ctx, {4, config.hidden_size}, DType::kF32, 5);
  std::vector<int32_t> chosen, replay = {0, 3, 7, 1, 2, 6, 0, 1, 2, 5, 6, 7};
  FeedForward::MoeInput input;
  Tensor own = moe.block->Forward(ctx, x_TD, input, nullptr);
  input.replay_TK = replay;
  input.routing_TK = &chosen;
  Tensor replayed = moe.block->Forward(ctx, x_TD, input, nullptr);
  EXPECT_EQ(chosen, replay);
  EXPECT_FALSE(SameBits(own, replayed));
}

}  // namespace
}  // namespace hone::model
