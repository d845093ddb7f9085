// What the tests of rl/rollout share: tiny models, prompts, samples, plans.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "model/transformer_stage.h"
#include "rl/rollout/coordinator.h"
#include "rl/rollout/inference_engine.h"
#include "rl/rollout/sample.h"
#include "runtime/context.h"
#include "runtime/philox.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {

inline constexpr int64_t kVocabulary = 272;  // the byte tokenizer's, padded
inline constexpr int64_t kContext = 96;

// Grouped-query attention, dense; weights large enough that the distributions are not flat.
inline model::ModelConfig DenseModel() {
  model::ModelConfig c;
  c.family = model::Family::kLlama;
  c.hidden_size = 32;
  c.intermediate_size = 48;
  c.num_hidden_layers = 2;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.vocab_size = kVocabulary;
  c.max_position_embeddings = kContext;
  c.tie_word_embeddings = true;
  c.initializer_range = 0.3;
  c.FillDerived();
  return c;
}

// DeepSeek-V3's: latent attention, a dense layer, then experts.
inline model::ModelConfig MoeModel() {
  model::ModelConfig c = DenseModel();
  c.family = model::Family::kDeepSeekV3;
  c.num_key_value_heads = 4;
  c.moe_intermediate_size = 16;
  c.first_k_dense_replace = 1;
  c.n_routed_experts = 8;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.router = kernels::RouterConfig::Kind::kSigmoidGroups;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 8;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 8;
  c.head_dim = 0;
  c.FillDerived();
  return c;
}

inline std::unique_ptr<model::TransformerStage> MakeModel(Context& ctx,
                                                          const model::ModelConfig& config,
                                                          uint64_t seed = 3) {
  model::StageOptions options;
  options.end_layer = config.num_hidden_layers;
  options.with_gradients = false;
  auto stage = std::make_unique<model::TransformerStage>(ctx, config, options);
  stage->Initialize(seed);
  return stage;
}

inline std::vector<int32_t> PromptTokens(int64_t length, uint64_t which) {
  RandomStream stream{17, which};
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < length; ++i) {
    tokens.push_back(static_cast<int32_t>(stream.Below(200, static_cast<uint64_t>(i))));
  }
  return tokens;
}

// A plan of `prompts` prompts, `group` samples each, that version 1 draws.
inline RolloutPlan TinyPlan(int64_t prompts, int64_t group, int64_t max_new_tokens = 12) {
  RolloutPlan plan;
  plan.stage = "rl";
  plan.seed = 9;
  plan.weight_version = 1;
  plan.weight_digest = "d1";
  plan.group_size = group;
  plan.max_new_tokens = max_new_tokens;
  for (int64_t i = 0; i < prompts; ++i) {
    RolloutPrompt p;
    p.index = i;
    p.tokens = PromptTokens(5 + i % 3, static_cast<uint64_t>(i));
    p.problem.id = fmt::format("p{}", i);
    p.problem.prompt = fmt::format("question {}", i);
    p.problem.answer = std::to_string(i);
    p.problem.verifier = "integer";
    plan.prompts.push_back(std::move(p));
  }
  return plan;
}

// What a sound worker would hand in for one place of a plan.
inline Sample FinishedSample(const RolloutPlan& plan, int64_t prompt, int64_t sample,
                             int64_t tokens = 3) {
  Sample s;
  s.key = {plan.stage, plan.rollout, prompt, sample};
  s.problem_id = plan.prompts[static_cast<size_t>(prompt)].problem.id;
  for (int32_t id : plan.prompts[static_cast<size_t>(prompt)].tokens) {
    s.tokens.push_back({id, TokenSource::kPrompt, 0, 0});
  }
  for (int64_t i = 0; i < tokens; ++i) {
    s.tokens.push_back({static_cast<int32_t>(10 * prompt + sample + i), TokenSource::kModel,
                        -0.25f * static_cast<float>(i + 1), plan.weight_version});
  }
  s.outcome = Outcome::kCorrect;
  s.rewards = {{"accuracy", 1.0}, {"format", 0.5}};
  s.text = "text \xff\x01";  // what a model draws need not be UTF-8
  return s;
}

inline bool SameSample(const Sample& a, const Sample& b) {
  bool same = a.key == b.key && a.problem_id == b.problem_id &&
              a.tokens.size() == b.tokens.size() && a.finish == b.finish &&
              a.outcome == b.outcome && a.rewards == b.rewards && a.text == b.text &&
              a.routing_TLK == b.routing_TLK;
  for (size_t i = 0; same && i < a.tokens.size(); ++i) {
    same = a.tokens[i].id == b.tokens[i].id && a.tokens[i].source == b.tokens[i].source &&
           a.tokens[i].logp == b.tokens[i].logp;
  }
  return same;
}

}  // namespace hone::rl
