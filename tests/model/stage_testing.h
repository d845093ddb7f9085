// What tests of whole stages share: small configs of every family, batches, losses, and a step.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/transformer_stage.h"
#include "tests/model/layer_testing.h"

namespace hone::model {

using parallel::HeadOutput;
using parallel::LossFunction;
using parallel::StageIO;

// Σ w · (−log p), through the one-pass kernel.
class CrossEntropyLoss : public LossFunction {
 public:
  bool is_cross_entropy() const override { return true; }
  Result Evaluate(Context&, const TokenBatch& batch, const HeadOutput& out) const override {
    Result result;
    const std::vector<double> logp = ToDoubles(out.logp_T);
    for (size_t t = 0; t < logp.size(); ++t) result.loss -= batch.loss_weight_T[t] * logp[t];
    return result;
  }
};

// Σ w · (−logp + logp² / 4 − entropy / 3 + value²), at temperature 0.7: a loss of every output.
class EveryOutputLoss : public LossFunction {
 public:
  bool needs_entropy() const override { return true; }
  double temperature() const override { return 0.7; }
  Result Evaluate(Context& ctx, const TokenBatch& batch, const HeadOutput& out) const override {
    Result result;
    const std::vector<double> logp = ToDoubles(out.logp_T), entropy = ToDoubles(out.entropy_T);
    const std::vector<double> value =
        out.value_T.defined() ? ToDoubles(out.value_T) : std::vector<double>(logp.size(), 0.0);
    std::vector<double> dlogp, dentropy, dvalue;
    for (size_t t = 0; t < logp.size(); ++t) {
      const double w = batch.target_T[t] == TokenBatch::kNoTarget ? 0 : batch.loss_weight_T[t];
      result.loss += w * (-logp[t] + logp[t] * logp[t] / 4 - entropy[t] / 3 + value[t] * value[t]);
      dlogp.push_back(w * (-1 + logp[t] / 2));
      dentropy.push_back(-w / 3);
      dvalue.push_back(2 * w * value[t]);
    }
    const DType dtype = out.logp_T.dtype();
    result.gradient.dlogp_T = FromDoubles(ctx, dlogp, {batch.tokens()}, dtype);
    result.gradient.dentropy_T = FromDoubles(ctx, dentropy, {batch.tokens()}, dtype);
    if (out.value_T.defined()) {
      result.gradient.dvalue_T = FromDoubles(ctx, dvalue, {batch.tokens()}, dtype);
    }
    return result;
  }
};

inline ModelConfig TinyDense() {
  ModelConfig c;
  c.family = Family::kLlama;
  c.hidden_size = 12;
  c.intermediate_size = 20;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.head_dim = 6;
  c.vocab_size = 23;
  c.max_position_embeddings = 64;
  c.rms_norm_eps = 1e-5;
  c.FillDerived();
  return c;
}

// Bias and QK norm at once, tied, with a value head.
inline ModelConfig TinyTied() {
  ModelConfig c = TinyDense();
  c.attention_bias = true;
  c.qk_norm = true;
  c.tie_word_embeddings = true;
  c.value_head = true;
  return c;
}

inline ModelConfig TinySoftmaxMoe() {
  ModelConfig c = TinyDense();
  c.family = Family::kQwen3Moe;
  c.num_hidden_layers = 2;
  c.qk_norm = true;
  c.n_routed_experts = 6;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 10;
  return c;
}

inline ModelConfig TinyV3() {
  ModelConfig c = TinyDense();
  c.family = Family::kDeepSeekV3;
  c.num_key_value_heads = 4;
  c.n_routed_experts = 8;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 3;
  c.moe_intermediate_size = 8;
  c.first_k_dense_replace = 1;
  c.n_group = 4;
  c.topk_group = 2;
  c.routed_scaling_factor = 1.5;
  c.router = kernels::RouterConfig::Kind::kSigmoidGroups;
  c.rope_form = kernels::RopeForm::kInterleaved;
  c.q_lora_rank = 8;
  c.kv_lora_rank = 10;
  c.qk_nope_head_dim = 6;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 5;
  c.num_nextn_predict_layers = 1;
  c.balance_loss_alpha = 0.05;
  c.FillDerived();
  return c;
}

inline StageOptions WholeModel(const ModelConfig& config, DType dtype) {
  StageOptions options;
  options.end_layer = config.num_hidden_layers;
  options.dtype = dtype;
  return options;
}

// Sequences of these lengths, laid end to end.
inline TokenBatch RandomBatch(const ModelConfig& config, const std::vector<int32_t>& lengths,
                              uint64_t seed) {
  TokenBatch batch;
  const RandomStream stream{seed, HashName("batch")};
  batch.cu_seqlens = {0};
  const auto vocab = static_cast<uint64_t>(config.vocab_size);
  for (int32_t length : lengths) {
    for (int32_t i = 0; i < length; ++i) {
      const uint64_t at = 3 * batch.token_T.size();
      batch.token_T.push_back(static_cast<int32_t>(stream.Below(vocab, at)));
      batch.target_T.push_back(i % 5 == 4 ? TokenBatch::kNoTarget
                                          : static_cast<int32_t>(stream.Below(vocab, at + 1)));
      batch.position_T.push_back(i);
      batch.loss_weight_T.push_back(i % 5 == 4 ? 0.0f
                                               : static_cast<float>(stream.Uniform(at + 2) / 8));
    }
    batch.cu_seqlens.push_back(static_cast<int32_t>(batch.token_T.size()));
  }
  return batch;
}

// Values large enough that every path matters; the same for a parameter in any layout.
inline void FillStage(Context& ctx, TransformerStage& stage, uint64_t seed, double scale = 0.3) {
  for (Parameter* p : stage.Parameters()) {
    const RandomStream stream{seed, HashName(p->spec.name)};
    const bool norm = p->spec.name.ends_with("norm.weight");
    const int64_t row = p->spec.slab.size() / std::max<int64_t>(1, p->spec.slab.extent[0]);
    std::vector<double> values(p->spec.slab.size());
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = norm + scale * stream.Normal(p->spec.slab.offset[0] * row + i);
    }
    CopyTo(FromDoubles(ctx, values, p->value.shape(), DType::kF64), p->value);
  }
}

inline void ZeroGradients(TransformerStage& stage) {
  for (Parameter* p : stage.Parameters()) {
    if (!p->gradient.defined()) continue;
    runtime::FillZero(p->gradient.raw(), p->gradient.device(), p->gradient.bytes(), nullptr);
  }
}

inline std::vector<Tensor> Gradients(Context& ctx, TransformerStage& stage) {
  std::vector<Tensor> gradients;
  for (Parameter* p : stage.Parameters()) {
    if (p->gradient.defined()) gradients.push_back(ctx.Clone(p->gradient));
  }
  return gradients;
}

inline void ExpectSameBits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(SameBits(a[i], b[i])) << "tensor " << i;
}

// One training forward; the total loss with what inner layers add.
inline double ForwardLoss(Context& ctx, TransformerStage& stage, const TokenBatch& batch,
                          const LossFunction& loss, int microbatch = 0) {
  stage.Forward(ctx, microbatch, batch, {}, &loss, /*train=*/true);
  return stage.TakeOutcome(microbatch).loss + stage.TakeAuxiliary().loss;
}

}  // namespace hone::model
