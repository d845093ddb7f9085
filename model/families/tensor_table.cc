#include "model/families/tensor_table.h"

#include <algorithm>
#include <charconv>

namespace hone::model {
namespace {

constexpr std::string_view kExperts = ".mlp.experts.";

class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : c_(config) {}

  void Add(const std::string& name, Shape shape) {
    table_.push_back({name, std::move(shape), false, false, mtp_});
  }
  void AddAttention(const std::string& p) {
    if (c_.is_mla()) {
      AddLatentAttention(p);
      return;
    }
    const int64_t d = c_.hidden_size, q = c_.num_attention_heads * c_.head_dim,
                  kv = c_.num_key_value_heads * c_.head_dim;
    for (const auto& [name, rows] : {std::pair{"q_proj", q}, {"k_proj", kv}, {"v_proj", kv}}) {
      Add(p + name + ".weight", {rows, d});
      if (c_.attention_bias) Add(p + name + ".bias", {rows});
    }
    Add(p + "o_proj.weight", {d, q});
    if (c_.qk_norm) {
      Add(p + "q_norm.weight", {c_.head_dim});
      Add(p + "k_norm.weight", {c_.head_dim});
    }
  }
  void AddLatentAttention(const std::string& p) {
    const int64_t d = c_.hidden_size, h = c_.num_attention_heads,
                  qk = c_.qk_nope_head_dim + c_.qk_rope_head_dim;
    if (c_.q_lora_rank > 0) {
      Add(p + "q_a_proj.weight", {c_.q_lora_rank, d});
      Add(p + "q_a_layernorm.weight", {c_.q_lora_rank});
      Add(p + "q_b_proj.weight", {h * qk, c_.q_lora_rank});
    } else {
      Add(p + "q_proj.weight", {h * qk, d});
    }
    Add(p + "kv_a_proj_with_mqa.weight", {c_.kv_lora_rank + c_.qk_rope_head_dim, d});
    Add(p + "kv_a_layernorm.weight", {c_.kv_lora_rank});
    Add(p + "kv_b_proj.weight", {h * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank});
    Add(p + "o_proj.weight", {d, h * c_.v_head_dim});
  }
  void AddMlp(const std::string& p, int64_t intermediate) {
    Add(p + "gate_proj.weight", {intermediate, c_.hidden_size});
    Add(p + "up_proj.weight", {intermediate, c_.hidden_size});
    Add(p + "down_proj.weight", {c_.hidden_size, intermediate});
  }
  void AddExperts(const std::string& p) {
    const int64_t d = c_.hidden_size, e = c_.n_routed_experts, f = c_.moe_intermediate_size;
    Add(p + "gate.weight", {e, d});
    if (c_.router == kernels::RouterConfig::Kind::kSigmoidGroups) {
      table_.push_back({p + "gate.e_score_correction_bias", {e}, false, true, mtp_});
    }
    table_.push_back({p + "experts.gate_proj.weight", {e, f, d}, true, false, mtp_});
    table_.push_back({p + "experts.up_proj.weight", {e, f, d}, true, false, mtp_});
    table_.push_back({p + "experts.down_proj.weight", {e, d, f}, true, false, mtp_});
    if (c_.n_shared_experts > 0) {
      AddMlp(p + "shared_experts.", c_.n_shared_experts * f);
    }
  }
  void AddBlock(const std::string& p, bool moe) {
    Add(p + "input_layernorm.weight", {c_.hidden_size});
    AddAttention(p + "self_attn.");
    Add(p + "post_attention_layernorm.weight", {c_.hidden_size});
    if (moe) {
      AddExperts(p + "mlp.");
    } else {
      AddMlp(p + "mlp.", c_.intermediate_size);
    }
  }
  void AddMultiTokenPrediction() {
    mtp_ = true;
    const int64_t d = c_.hidden_size;
    const std::string p = fmt::format("model.layers.{}.", c_.num_hidden_layers);
    Add(p + "enorm.weight", {d});
    Add(p + "hnorm.weight", {d});
    Add(p + "eh_proj.weight", {d, 2 * d});
    AddBlock(p, c_.is_moe());
    Add(p + "shared_head.norm.weight", {d});
  }
  std::vector<TensorInfo> Take() { return std::move(table_); }

 private:
  const ModelConfig& c_;
  bool mtp_ = false;
  std::vector<TensorInfo> table_;
};

}  // namespace

std::vector<TensorInfo> TensorTable(const ModelConfig& config) {
  TableBuilder builder(config);
  builder.Add(kEmbeddingName, {config.vocab_size, config.hidden_size});
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    builder.AddBlock(fmt::format("model.layers.{}.", layer), config.IsMoeLayer(layer));
  }
  builder.Add("model.norm.weight", {config.hidden_size});
  if (!config.tie_word_embeddings) builder.Add(kHeadName, {config.vocab_size, config.hidden_size});
  if (config.value_head) builder.Add(kValueHeadName, {1, config.hidden_size});
  if (config.num_nextn_predict_layers > 0) builder.AddMultiTokenPrediction();
  return builder.Take();
}

std::vector<std::string> RepeatsOf(const ModelConfig& config, const std::string& name) {
  const bool embedding = name == kEmbeddingName, tied = config.tie_word_embeddings;
  std::vector<std::string> repeats;
  if (embedding && tied) repeats.push_back(kHeadName);
  if (config.num_nextn_predict_layers == 0) return repeats;
  const std::string mtp = fmt::format("model.layers.{}.", config.num_hidden_layers);
  if (embedding) repeats.push_back(mtp + "embed_tokens.weight");
  if (name == (tied ? kEmbeddingName : kHeadName)) {
    repeats.push_back(mtp + "shared_head.head.weight");
  }
  return repeats;
}

std::string RepeatedTensor(const ModelConfig& config, const std::string& name) {
  for (const char* original : {kEmbeddingName, kHeadName}) {
    const std::vector<std::string> repeats = RepeatsOf(config, original);
    if (std::find(repeats.begin(), repeats.end(), name) != repeats.end()) return original;
  }
  return "";
}

std::optional<TensorPlace> PlaceOf(const ModelConfig& config, const std::string& name) {
  if (!RepeatedTensor(config, name).empty() || name.ends_with("rotary_emb.inv_freq")) {
    return std::nullopt;
  }
  const size_t at = name.find(kExperts);
  if (at == std::string::npos) return TensorPlace{name, -1};
  const char* begin = name.data() + at + kExperts.size();
  const char* end = name.data() + name.size();
  int64_t expert = -1;
  const auto [rest, error] = std::from_chars(begin, end, expert);
  if (error != std::errc() || rest == end || *rest != '.') return TensorPlace{name, -1};
  return TensorPlace{name.substr(0, at + kExperts.size()) + std::string(rest + 1, end), expert};
}

std::vector<std::string> HuggingFaceNames(const TensorInfo& tensor) {
  if (!tensor.experts) return {tensor.name};
  const size_t split = tensor.name.find(kExperts) + kExperts.size();
  std::vector<std::string> names;
  for (int64_t e = 0; e < tensor.shape[0]; ++e) {
    names.push_back(
        fmt::format("{}{}.{}", tensor.name.substr(0, split), e, tensor.name.substr(split)));
  }
  return names;
}

}  // namespace hone::model
