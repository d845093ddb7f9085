// What a model is: read from a Hugging Face config.json, or from a run config with the same names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/rope/rope.h"
#include "kernels/router/router.h"
#include "runtime/config.h"
#include "runtime/dtype.h"

namespace hone::model {

enum class Family { kLlama, kQwen2, kQwen3, kQwen3Moe, kDeepSeekV3 };
const std::vector<std::string>& FamilyNames();  // llama qwen2 qwen3 qwen3_moe deepseek_v3

struct ModelConfig {
  Family family = Family::kLlama;
  int64_t hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0;
  int64_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
  int64_t vocab_size = 0, max_position_embeddings = 0;
  double rms_norm_eps = 1e-6, initializer_range = 0.02;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // Qwen2: bias on q, k, v
  bool qk_norm = false;         // Qwen3: RMSNorm on each head of q and k
  kernels::RopeConfig rope;     // dim is filled in
  kernels::RopeForm rope_form = kernels::RopeForm::kRotateHalf;

  // Mixture of experts; 0 experts: dense.
  int64_t n_routed_experts = 0, n_shared_experts = 0, num_experts_per_tok = 0;
  int64_t moe_intermediate_size = 0, first_k_dense_replace = 0;
  int64_t n_group = 1, topk_group = 1;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1.0;
  kernels::RouterConfig::Kind router = kernels::RouterConfig::Kind::kSoftmaxTopK;
  double bias_update_speed = 0.001;  // γ of V3's balancing without auxiliary loss
  double balance_loss_alpha = 0.0;   // V3's sequence-wise loss: 1e-4

  // Multi-head latent attention; kv_lora_rank 0: grouped-query attention.
  int64_t q_lora_rank = 0, kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;

  int64_t num_nextn_predict_layers = 0;  // MTP depth (0 or 1)
  double mtp_loss_weight = 0.3;
  bool value_head = false;

  bool is_moe() const { return n_routed_experts > 0; }
  bool is_mla() const { return kv_lora_rank > 0; }
  bool IsMoeLayer(int64_t layer) const { return is_moe() && layer >= first_k_dense_replace; }
  kernels::RouterConfig router_config() const;
  double attention_scale() const;  // 1/√d, with YaRN's mscale² for MLA

  // ConfigError names file and the missing or unfitting field; an unknown model_type lists the
  // families.
  static ModelConfig FromHuggingFace(const std::string& config_json_path);
  static ModelConfig FromHuggingFaceText(const std::string& json, const std::string& where);
  // `dtype`: of the weights beside it. ConfigError for what the family's format cannot say.
  std::string ToHuggingFaceJson(DType dtype = DType::kF32) const;
  void CheckExportable() const;     // that ConfigError alone
  void Read(ConfigReader& reader);  // `family:` and config.json's own names
  // What may stand beside a config.json: how the model is trained, of which it says nothing; and
  // the context and the depth of MTP, which need not be the file's.
  void ReadBeside(ConfigReader& reader);
  void Validate(const std::string& where) const;
  // Router biases are counted: DeepSeek-V3 without MTP has 671,026,419,200. Active: of one token.
  int64_t ParameterCount(bool with_mtp) const;
  int64_t ActiveParameterCount(bool with_embedding) const;

  // head_dim and rope.dim from the others, where the source did not say.
  void FillDerived();
};

std::string HuggingFaceDTypeName(DType dtype);  // "bfloat16"

}  // namespace hone::model
