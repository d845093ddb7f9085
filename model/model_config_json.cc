// config.json: reading, with an error that names file and field for what is missing or not
// supported; and writing what transformers reads.
#include <algorithm>
#include <fstream>
#include <sstream>

#include "model/model_config.h"
#include "runtime/json.h"

namespace hone::model {
namespace {

using nlohmann::ordered_json;
using Scaling = kernels::RopeConfig::Scaling;
using kernels::RopeForm;
using kernels::RouterConfig;

// Fields of one JSON object; null counts as absent.
class Fields {
 public:
  Fields(const ordered_json& json, const std::string& where) : json_(json), where_(where) {}

  bool Has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  template <class T>
  void Required(const char* key, T* value) const {
    Check<ConfigError>(Has(key), "{}: missing field '{}'", where_, key);
    Get(key, value);
  }
  template <class T>
  void Optional(const char* key, T* value) const {
    if (Has(key)) Get(key, value);
  }
  // A feature that would change results, and that hone does not have.
  template <class T>
  void Only(const char* key, const T& supported) const {
    if (!Has(key)) return;
    T value = supported;
    Get(key, &value);
    Check<ConfigError>(value == supported, "{}: field '{}' is {}; only {} is supported", where_,
                       key, json_.at(key).dump(), ordered_json(supported).dump());
  }
  Fields Child(const char* key) const { return Fields(json_.at(key), where_ + ": " + key); }
  bool empty() const { return json_.empty(); }
  bool Is(const char* key, const ordered_json& value) const {
    return Has(key) && json_.at(key) == value;
  }
  const std::string& where() const { return where_; }

 private:
  template <class T>
  void Get(const char* key, T* value) const {
    const ordered_json& v = json_.at(key);
    const bool fits = std::is_same_v<T, bool>          ? v.is_boolean()
                      : std::is_same_v<T, std::string> ? v.is_string()
                      : std::is_same_v<T, double>      ? v.is_number()
                                                       : v.is_number_integer();
    Check<ConfigError>(fits, "{}: field '{}' has the wrong type: {}", where_, key, v.dump());
    *value = v.get<T>();
  }

  const ordered_json& json_;
  std::string where_;
};

void ReadScaling(const Fields& f, ModelConfig& c) {
  std::string type = "default";
  f.Optional("type", &type);
  f.Optional("rope_type", &type);
  static const std::vector<std::pair<std::string, Scaling>> kinds = {{"default", Scaling::kNone},
                                                                     {"linear", Scaling::kLinear},
                                                                     {"llama3", Scaling::kLlama3},
                                                                     {"yarn", Scaling::kYarn}};
  const auto* kind = [&]() -> const std::pair<std::string, Scaling>* {
    for (const auto& k : kinds) {
      if (k.first == type) return &k;
    }
    return nullptr;
  }();
  Check<ConfigError>(kind != nullptr,
                     "{}: rope type '{}' is not one of default, linear, llama3, yarn", f.where(),
                     type);
  kernels::RopeConfig& rope = c.rope;
  rope.scaling = kind->second;
  f.Optional("rope_theta", &rope.theta);
  if (rope.scaling == Scaling::kNone) return;
  f.Required("factor", &rope.factor);
  f.Optional("original_max_position_embeddings", &rope.original_max_position);
  f.Optional("beta_fast", &rope.beta_fast);
  f.Optional("beta_slow", &rope.beta_slow);
  f.Optional("low_freq_factor", &rope.low_freq_factor);
  f.Optional("high_freq_factor", &rope.high_freq_factor);
  f.Optional("attention_factor", &rope.attention_factor);
  f.Optional("mscale", &rope.mscale);
  f.Optional("mscale_all_dim", &rope.mscale_all_dim);
  f.Optional("truncate", &rope.truncate);
}

// Weights may be stored as V3 publishes them, fp8 with a factor for each block of 128 × 128: they
// are read as what they stand for. Other quantisations are not known.
void CheckQuantization(const Fields& f) {
  f.Only<std::string>("quant_method", "fp8");
  f.Only<std::string>("fmt", "e4m3");
  Check<ConfigError>(f.Is("weight_block_size", {128, 128}),
                     "{}: field 'weight_block_size' is not [128, 128], which alone is supported",
                     f.where());
}

void ReadCommon(const Fields& f, ModelConfig& c) {
  f.Required("hidden_size", &c.hidden_size);
  f.Required("num_hidden_layers", &c.num_hidden_layers);
  f.Required("num_attention_heads", &c.num_attention_heads);
  f.Required("vocab_size", &c.vocab_size);
  f.Required("max_position_embeddings", &c.max_position_embeddings);
  f.Required("rms_norm_eps", &c.rms_norm_eps);
  c.num_key_value_heads = c.num_attention_heads;
  f.Optional("num_key_value_heads", &c.num_key_value_heads);
  f.Optional("intermediate_size", &c.intermediate_size);
  f.Optional("head_dim", &c.head_dim);
  f.Optional("initializer_range", &c.initializer_range);
  f.Optional("tie_word_embeddings", &c.tie_word_embeddings);
  f.Optional("rope_theta", &c.rope.theta);
  c.rope.original_max_position = c.max_position_embeddings;
  if (f.Has("rope_scaling")) ReadScaling(f.Child("rope_scaling"), c);
  if (f.Has("rope_parameters")) ReadScaling(f.Child("rope_parameters"), c);
  if (f.Has("quantization_config")) CheckQuantization(f.Child("quantization_config"));
  f.Only<std::string>("hidden_act", "silu");
  f.Only("use_sliding_window", false);
  f.Only("mlp_bias", false);
  if (c.family != Family::kQwen2) f.Only("attention_bias", false);
}

void ReadQwen3Moe(const Fields& f, ModelConfig& c) {
  // Newer files say num_local_experts.
  f.Required(f.Has("num_local_experts") ? "num_local_experts" : "num_experts", &c.n_routed_experts);
  f.Required("num_experts_per_tok", &c.num_experts_per_tok);
  f.Required("moe_intermediate_size", &c.moe_intermediate_size);
  c.norm_topk_prob = false;  // the format's default
  f.Optional("norm_topk_prob", &c.norm_topk_prob);
  f.Only<int64_t>("decoder_sparse_step", 1);
  if (f.Has("mlp_only_layers")) {
    Check<ConfigError>(f.Child("mlp_only_layers").empty(),
                       "{}: field 'mlp_only_layers' is not supported", f.where());
  }
}

void ReadDeepSeekV3(const Fields& f, ModelConfig& c) {
  f.Required("kv_lora_rank", &c.kv_lora_rank);
  f.Optional("q_lora_rank", &c.q_lora_rank);
  f.Required("qk_nope_head_dim", &c.qk_nope_head_dim);
  f.Required("qk_rope_head_dim", &c.qk_rope_head_dim);
  f.Required("v_head_dim", &c.v_head_dim);
  f.Required("n_routed_experts", &c.n_routed_experts);
  f.Required("n_shared_experts", &c.n_shared_experts);
  f.Required("num_experts_per_tok", &c.num_experts_per_tok);
  f.Required("moe_intermediate_size", &c.moe_intermediate_size);
  f.Required("first_k_dense_replace", &c.first_k_dense_replace);
  f.Required("n_group", &c.n_group);
  f.Required("topk_group", &c.topk_group);
  f.Optional("norm_topk_prob", &c.norm_topk_prob);
  f.Required("routed_scaling_factor", &c.routed_scaling_factor);
  f.Optional("num_nextn_predict_layers", &c.num_nextn_predict_layers);
  f.Only<std::string>("scoring_func", "sigmoid");
  f.Only<std::string>("topk_method", "noaux_tc");
  f.Only<int64_t>("moe_layer_freq", 1);
  bool interleaved = true;
  f.Optional("rope_interleave", &interleaved);
  c.rope_form = interleaved ? RopeForm::kInterleaved : RopeForm::kRotateHalf;
  c.router = RouterConfig::Kind::kSigmoidGroups;
}

ordered_json ScalingToJson(const ModelConfig& c) {
  const kernels::RopeConfig& rope = c.rope;
  if (rope.scaling == Scaling::kNone) return nullptr;
  ordered_json j;
  j["rope_type"] = rope.scaling == Scaling::kLinear   ? "linear"
                   : rope.scaling == Scaling::kLlama3 ? "llama3"
                                                      : "yarn";
  j["factor"] = rope.factor;
  if (rope.scaling == Scaling::kLinear) return j;
  j["original_max_position_embeddings"] = rope.original_max_position;
  if (rope.scaling == Scaling::kLlama3) {
    j["low_freq_factor"] = rope.low_freq_factor;
    j["high_freq_factor"] = rope.high_freq_factor;
    return j;
  }
  j["beta_fast"] = rope.beta_fast;
  j["beta_slow"] = rope.beta_slow;
  if (rope.attention_factor > 0) j["attention_factor"] = rope.attention_factor;
  if (rope.mscale != 0) j["mscale"] = rope.mscale;
  if (rope.mscale_all_dim != 0) j["mscale_all_dim"] = rope.mscale_all_dim;
  if (!rope.truncate) j["truncate"] = false;
  return j;
}

void DeepSeekV3ToJson(const ModelConfig& c, ordered_json& j) {
  j["q_lora_rank"] = c.q_lora_rank > 0 ? ordered_json(c.q_lora_rank) : ordered_json(nullptr);
  j["kv_lora_rank"] = c.kv_lora_rank;
  j["qk_nope_head_dim"] = c.qk_nope_head_dim;
  j["qk_rope_head_dim"] = c.qk_rope_head_dim;
  j["v_head_dim"] = c.v_head_dim;
  j["n_routed_experts"] = c.n_routed_experts;
  j["n_shared_experts"] = c.n_shared_experts;
  j["num_experts_per_tok"] = c.num_experts_per_tok;
  j["moe_intermediate_size"] = c.moe_intermediate_size;
  j["first_k_dense_replace"] = c.first_k_dense_replace;
  j["moe_layer_freq"] = 1;
  j["n_group"] = c.n_group;
  j["topk_group"] = c.topk_group;
  j["norm_topk_prob"] = c.norm_topk_prob;
  j["routed_scaling_factor"] = c.routed_scaling_factor;
  j["scoring_func"] = "sigmoid";
  j["topk_method"] = "noaux_tc";
  j["rope_interleave"] = c.rope_form == RopeForm::kInterleaved;
  j["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
}

}  // namespace

ModelConfig ModelConfig::FromHuggingFaceText(const std::string& text, const std::string& where) {
  const auto json = runtime::ParseJson<ConfigError, ordered_json>(text, where);
  Check<ConfigError>(json.is_object(), "{}: not a JSON object", where);
  const Fields f(json, where);
  std::string type;
  f.Required("model_type", &type);
  const auto& names = FamilyNames();
  const auto found = std::find(names.begin(), names.end(), type);
  std::string families;
  for (const std::string& name : names) families += " " + name;
  Check<ConfigError>(found != names.end(), "{}: unknown model_type '{}'; families are{}", where,
                     type, families);
  ModelConfig c;
  c.family = static_cast<Family>(found - names.begin());
  ReadCommon(f, c);
  c.attention_bias = c.family == Family::kQwen2;
  c.qk_norm = c.family == Family::kQwen3 || c.family == Family::kQwen3Moe;
  if (c.family == Family::kQwen3Moe) ReadQwen3Moe(f, c);
  if (c.family == Family::kDeepSeekV3) ReadDeepSeekV3(f, c);
  c.FillDerived();
  c.Validate(where);
  return c;
}

ModelConfig ModelConfig::FromHuggingFace(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  Check<ConfigError>(in.good(), "{}: cannot be read", path);
  std::stringstream text;
  text << in.rdbuf();
  return FromHuggingFaceText(text.str(), path);
}

std::string HuggingFaceDTypeName(DType dtype) {
  return dtype == DType::kBF16 ? "bfloat16" : dtype == DType::kF64 ? "float64" : "float32";
}

void ModelConfig::CheckExportable() const {
  const std::string& name = FamilyNames()[static_cast<int>(family)];
  const bool deepseek = family == Family::kDeepSeekV3;
  Check<ConfigError>(deepseek == is_mla(),
                     "[config] family {} {} latent attention (kv_lora_rank {}) in the Hugging Face "
                     "format",
                     name, deepseek ? "needs" : "has no", kv_lora_rank);
  Check<ConfigError>(deepseek || rope_form == RopeForm::kRotateHalf,
                     "[config] family {} has no interleaved rope in the Hugging Face format", name);
  Check<ConfigError>(is_moe() == (deepseek || family == Family::kQwen3Moe),
                     "[config] family {} with {} experts has no Hugging Face format", name,
                     n_routed_experts);
  if (deepseek) return;
  auto check = [&](const char* field, auto value, decltype(value) only) {
    Check<ConfigError>(value == only,
                       "[config] {} is {}: family {} has but {} in the Hugging Face format", field,
                       value, name, only);
  };
  check("n_shared_experts", n_shared_experts, 0);
  check("first_k_dense_replace", first_k_dense_replace, 0);
  check("routed_scaling_factor", routed_scaling_factor, 1);
  check("num_nextn_predict_layers", num_nextn_predict_layers, 0);
}

std::string ModelConfig::ToHuggingFaceJson(DType dtype) const {
  CheckExportable();
  static const std::vector<std::string> architectures = {"LlamaForCausalLM", "Qwen2ForCausalLM",
                                                         "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
                                                         "DeepseekV3ForCausalLM"};
  const int index = static_cast<int>(family);
  ordered_json j;
  j["architectures"] = {architectures[index]};
  j["model_type"] = FamilyNames()[index];
  j["hidden_size"] = hidden_size;
  j["intermediate_size"] = intermediate_size;
  j["num_hidden_layers"] = num_hidden_layers;
  j["num_attention_heads"] = num_attention_heads;
  j["num_key_value_heads"] = num_key_value_heads;
  if (!is_mla()) j["head_dim"] = head_dim;
  j["vocab_size"] = vocab_size;
  j["max_position_embeddings"] = max_position_embeddings;
  j["rms_norm_eps"] = rms_norm_eps;
  j["initializer_range"] = initializer_range;
  j["tie_word_embeddings"] = tie_word_embeddings;
  j["hidden_act"] = "silu";
  j["torch_dtype"] = HuggingFaceDTypeName(dtype);
  j["rope_theta"] = rope.theta;
  j["rope_scaling"] = ScalingToJson(*this);
  if (family == Family::kDeepSeekV3) DeepSeekV3ToJson(*this, j);
  if (family == Family::kQwen3Moe) {
    j["num_experts"] = n_routed_experts;
    j["num_experts_per_tok"] = num_experts_per_tok;
    j["moe_intermediate_size"] = moe_intermediate_size;
    j["norm_topk_prob"] = norm_topk_prob;
    j["decoder_sparse_step"] = 1;
    j["mlp_only_layers"] = ordered_json::array();
  }
  return j.dump(2) + "\n";
}

}  // namespace hone::model
