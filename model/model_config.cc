#include "model/model_config.h"

#include <cmath>

#include "model/families/tensor_table.h"

namespace hone::model {

using kernels::RopeConfig;
using kernels::RopeForm;
using kernels::RouterConfig;

const std::vector<std::string>& FamilyNames() {
  static const std::vector<std::string> names = {"llama", "qwen2", "qwen3", "qwen3_moe",
                                                 "deepseek_v3"};
  return names;
}

RouterConfig ModelConfig::router_config() const {
  RouterConfig c;
  c.kind = router;
  c.experts = n_routed_experts;
  c.top_k = num_experts_per_tok;
  c.groups = n_group;
  c.top_groups = topk_group;
  c.normalize = norm_topk_prob;
  c.scale = routed_scaling_factor;
  return c;
}

double ModelConfig::attention_scale() const {
  if (!is_mla()) return 1.0 / std::sqrt(static_cast<double>(head_dim));
  const double dim = static_cast<double>(qk_nope_head_dim + qk_rope_head_dim);
  return kernels::YarnSoftmaxFactor(rope) / std::sqrt(dim);
}

namespace {

// What follows from the family where nothing else is said.
void SetFamilyDefaults(ModelConfig& c) {
  c.attention_bias = c.family == Family::kQwen2;
  c.qk_norm = c.family == Family::kQwen3 || c.family == Family::kQwen3Moe;
  if (c.family == Family::kDeepSeekV3) {
    c.router = RouterConfig::Kind::kSigmoidGroups;
    c.rope_form = RopeForm::kInterleaved;
  }
}

void ReadRope(ConfigReader& reader, ModelConfig& c) {
  reader.Optional("rope_theta", &c.rope.theta);
  bool interleaved = c.rope_form == RopeForm::kInterleaved;
  reader.Optional("rope_interleave", &interleaved);
  c.rope_form = interleaved ? RopeForm::kInterleaved : RopeForm::kRotateHalf;
  ConfigReader& scaling = reader.Map("rope_scaling");
  RopeConfig& rope = c.rope;
  const char* type_key = scaling.Has("type") ? "type" : "rope_type";
  const int kind = scaling.OneOf(type_key, {"default", "linear", "llama3", "yarn"}, 0);
  rope.scaling = static_cast<RopeConfig::Scaling>(kind);
  rope.original_max_position = c.max_position_embeddings;
  scaling.Optional("factor", &rope.factor);
  scaling.Optional("original_max_position_embeddings", &rope.original_max_position);
  scaling.Optional("beta_fast", &rope.beta_fast);
  scaling.Optional("beta_slow", &rope.beta_slow);
  scaling.Optional("low_freq_factor", &rope.low_freq_factor);
  scaling.Optional("high_freq_factor", &rope.high_freq_factor);
  scaling.Optional("attention_factor", &rope.attention_factor);
  scaling.Optional("mscale", &rope.mscale);
  scaling.Optional("mscale_all_dim", &rope.mscale_all_dim);
  scaling.Optional("truncate", &rope.truncate);
}

void ReadExperts(ConfigReader& reader, ModelConfig& c) {
  const char* experts = c.family == Family::kQwen3Moe ? "num_experts" : "n_routed_experts";
  reader.Optional(experts, &c.n_routed_experts);
  reader.Optional("n_shared_experts", &c.n_shared_experts);
  reader.Optional("num_experts_per_tok", &c.num_experts_per_tok);
  reader.Optional("moe_intermediate_size", &c.moe_intermediate_size);
  reader.Optional("first_k_dense_replace", &c.first_k_dense_replace);
  reader.Optional("norm_topk_prob", &c.norm_topk_prob);
  reader.Optional("routed_scaling_factor", &c.routed_scaling_factor);
  if (c.router == RouterConfig::Kind::kSigmoidGroups) {
    reader.Optional("n_group", &c.n_group);
    reader.Optional("topk_group", &c.topk_group);
  }
}

void ReadTraining(ConfigReader& reader, ModelConfig& c) {
  if (c.router == RouterConfig::Kind::kSigmoidGroups) {  // the one with a bias
    reader.Optional("bias_update_speed", &c.bias_update_speed);
  }
  reader.Optional("balance_loss_alpha", &c.balance_loss_alpha);
  reader.Optional("num_nextn_predict_layers", &c.num_nextn_predict_layers);
  reader.Optional("mtp_loss_weight", &c.mtp_loss_weight);
}

}  // namespace

void ModelConfig::Read(ConfigReader& reader) {
  family = static_cast<Family>(reader.OneOf("family", FamilyNames(), 0));
  SetFamilyDefaults(*this);
  reader.Required("hidden_size", &hidden_size);
  reader.Required("num_hidden_layers", &num_hidden_layers);
  reader.Required("num_attention_heads", &num_attention_heads);
  reader.Required("vocab_size", &vocab_size);
  reader.Required("max_position_embeddings", &max_position_embeddings);
  reader.Optional("intermediate_size", &intermediate_size);
  num_key_value_heads = num_attention_heads;
  reader.Optional("num_key_value_heads", &num_key_value_heads);
  reader.Optional("rms_norm_eps", &rms_norm_eps);
  reader.Optional("initializer_range", &initializer_range);
  reader.Optional("tie_word_embeddings", &tie_word_embeddings);
  reader.Optional("value_head", &value_head);
  reader.Optional("q_lora_rank", &q_lora_rank);
  reader.Optional("kv_lora_rank", &kv_lora_rank);
  reader.Optional("qk_nope_head_dim", &qk_nope_head_dim);
  reader.Optional("qk_rope_head_dim", &qk_rope_head_dim);
  reader.Optional("v_head_dim", &v_head_dim);
  ReadExperts(reader, *this);
  ReadTraining(reader, *this);
  ReadRope(reader, *this);
  reader.Optional("head_dim", &head_dim);
  FillDerived();
  Validate(reader.Where());
}

void ModelConfig::ReadBeside(ConfigReader& reader) {
  reader.Optional("max_position_embeddings", &max_position_embeddings);
  ReadTraining(reader, *this);
}

void ModelConfig::FillDerived() {
  if (is_mla()) {
    head_dim = qk_nope_head_dim + qk_rope_head_dim;
    rope.dim = qk_rope_head_dim;
  } else {
    if (head_dim == 0 && num_attention_heads > 0) head_dim = hidden_size / num_attention_heads;
    rope.dim = head_dim;
  }
}

namespace {

void CheckPositive(const std::string& where, const char* field, int64_t value) {
  Check<ConfigError>(value > 0, "{}: {} is {}; it must be positive", where, field, value);
}

template <class T>
void CheckNotNegative(const std::string& where, const char* field, T value) {
  Check<ConfigError>(value >= 0, "{}: {} is {}; it must not be negative", where, field, value);
}

void ValidateExperts(const ModelConfig& c, const std::string& where) {
  CheckPositive(where, "moe_intermediate_size", c.moe_intermediate_size);
  Check<ConfigError>(c.num_experts_per_tok > 0 && c.num_experts_per_tok <= c.n_routed_experts,
                     "{}: num_experts_per_tok is {} of {} experts", where, c.num_experts_per_tok,
                     c.n_routed_experts);
  Check<ConfigError>(c.n_group > 0 && c.n_routed_experts % c.n_group == 0,
                     "{}: {} experts do not split into n_group = {}", where, c.n_routed_experts,
                     c.n_group);
  Check<ConfigError>(c.topk_group > 0 && c.topk_group <= c.n_group,
                     "{}: topk_group is {} of n_group = {}", where, c.topk_group, c.n_group);
  Check<ConfigError>(c.num_experts_per_tok <= c.topk_group * (c.n_routed_experts / c.n_group),
                     "{}: {} experts a token do not fit into topk_group = {} groups of {}", where,
                     c.num_experts_per_tok, c.topk_group, c.n_routed_experts / c.n_group);
}

}  // namespace

void ModelConfig::Validate(const std::string& where) const {
  CheckPositive(where, "hidden_size", hidden_size);
  CheckPositive(where, "num_hidden_layers", num_hidden_layers);
  CheckPositive(where, "num_attention_heads", num_attention_heads);
  CheckPositive(where, "num_key_value_heads", num_key_value_heads);
  CheckPositive(where, "vocab_size", vocab_size);
  CheckPositive(where, "max_position_embeddings", max_position_embeddings);
  CheckPositive(where, "head_dim", head_dim);
  CheckNotNegative(where, "n_routed_experts", n_routed_experts);
  CheckNotNegative(where, "n_shared_experts", n_shared_experts);
  CheckNotNegative(where, "first_k_dense_replace", first_k_dense_replace);
  CheckNotNegative(where, "q_lora_rank", q_lora_rank);
  CheckNotNegative(where, "kv_lora_rank", kv_lora_rank);
  CheckNotNegative(where, "bias_update_speed", bias_update_speed);
  CheckNotNegative(where, "balance_loss_alpha", balance_loss_alpha);
  CheckNotNegative(where, "mtp_loss_weight", mtp_loss_weight);
  CheckNotNegative(where, "initializer_range", initializer_range);
  if (!is_moe() || first_k_dense_replace > 0) {
    CheckPositive(where, "intermediate_size", intermediate_size);
  }
  Check<ConfigError>(rms_norm_eps > 0, "{}: rms_norm_eps is {}; it must be positive", where,
                     rms_norm_eps);
  Check<ConfigError>(rope.dim > 0 && rope.dim % 2 == 0,
                     "{}: the rotary dim is {}; it must be even (head_dim, or qk_rope_head_dim)",
                     where, rope.dim);
  if (is_mla()) {
    CheckPositive(where, "qk_nope_head_dim", qk_nope_head_dim);
    CheckPositive(where, "v_head_dim", v_head_dim);
  } else {
    Check<ConfigError>(num_attention_heads % num_key_value_heads == 0,
                       "{}: {} attention heads do not share {} key/value heads evenly", where,
                       num_attention_heads, num_key_value_heads);
  }
  if (is_moe()) ValidateExperts(*this, where);
  Check<ConfigError>(num_nextn_predict_layers == 0 || num_nextn_predict_layers == 1,
                     "{}: num_nextn_predict_layers is {}; depths 0 and 1 are supported", where,
                     num_nextn_predict_layers);
}

int64_t ModelConfig::ParameterCount(bool with_mtp) const {
  int64_t count = 0;
  for (const TensorInfo& t : TensorTable(*this)) {
    if (with_mtp || !t.mtp) count += runtime::NumElements(t.shape);
  }
  return count;
}

int64_t ModelConfig::ActiveParameterCount(bool with_embedding) const {
  int64_t count = 0;
  for (const TensorInfo& t : TensorTable(*this)) {
    if (t.mtp) continue;
    // A tied table works as the output head, which is active.
    if (t.name == kEmbeddingName && !with_embedding && !tie_word_embeddings) continue;
    const int64_t size = runtime::NumElements(t.shape);
    count += t.experts ? size / n_routed_experts * num_experts_per_tok : size;
  }
  return count;
}

}  // namespace hone::model
