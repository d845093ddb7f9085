#include "model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/read_json.h"

namespace hone::model {
namespace {

using nlohmann::json;
using testing::HasSubstr;

template <class Fn>
std::string ErrorOf(Fn&& fn) {
  try {
    fn();
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

json LlamaJson() {
  return {{"model_type", "llama"},    {"hidden_size", 64},
          {"intermediate_size", 128}, {"num_hidden_layers", 2},
          {"num_attention_heads", 4}, {"num_key_value_heads", 2},
          {"vocab_size", 100},        {"max_position_embeddings", 256},
          {"rms_norm_eps", 1e-5}};
}
json Qwen3MoeJson() {
  json moe = LlamaJson();
  moe.update({{"model_type", "qwen3_moe"},
              {"num_experts", 8},
              {"num_experts_per_tok", 2},
              {"moe_intermediate_size", 48},
              {"norm_topk_prob", true},
              {"head_dim", 24}});
  return moe;
}
ModelConfig Parse(const json& j) {
  return ModelConfig::FromHuggingFaceText(j.dump(), "x/config.json");
}

TEST(ModelConfigTest, MissingWrongAndUnsupportedFieldsAreNamed) {
  for (const char* field : {"model_type", "hidden_size", "num_hidden_layers", "vocab_size",
                            "num_attention_heads", "rms_norm_eps", "max_position_embeddings"}) {
    json j = LlamaJson();
    j.erase(field);
    const std::string error = ErrorOf([&] { Parse(j); });
    EXPECT_THAT(error, HasSubstr("x/config.json")) << field;
    EXPECT_THAT(error, HasSubstr(field));
  }
  auto with = [](const char* key, json value) {
    json j = LlamaJson();
    j[key] = std::move(value);
    return ErrorOf([&] { Parse(j); });
  };
  EXPECT_THAT(with("hidden_size", "64"), HasSubstr("'hidden_size' has the wrong type"));
  EXPECT_THAT(with("hidden_size", -64), HasSubstr("hidden_size"));
  EXPECT_THAT(with("num_key_value_heads", 3), HasSubstr("4 attention heads do not share 3"));
  EXPECT_THAT(with("hidden_act", "gelu"), HasSubstr("'hidden_act' is \"gelu\""));
  EXPECT_THAT(with("attention_bias", true), HasSubstr("attention_bias"));
  EXPECT_THAT(with("mlp_bias", true), HasSubstr("mlp_bias"));
  EXPECT_THAT(with("model_type", "gpt2"),
              HasSubstr("'gpt2'; families are llama qwen2 qwen3 qwen3_moe deepseek_v3"));
  EXPECT_THAT(with("rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}), HasSubstr("'dynamic'"));
  EXPECT_THAT(with("rope_scaling", {{"type", "linear"}}), HasSubstr("missing field 'factor'"));
  EXPECT_THAT(ErrorOf([] { ModelConfig::FromHuggingFaceText("{", "x/config.json"); }),
              HasSubstr("x/config.json: not JSON"));
  EXPECT_THAT(ErrorOf([] { ModelConfig::FromHuggingFace("/nowhere/config.json"); }),
              HasSubstr("/nowhere/config.json"));
}

TEST(ModelConfigTest, ReadsEveryRopeVariant) {
  using Scaling = kernels::RopeConfig::Scaling;
  json j = LlamaJson();
  j["rope_theta"] = 5e5;
  EXPECT_EQ(Parse(j).rope.scaling, Scaling::kNone);
  EXPECT_EQ(Parse(j).rope.theta, 5e5);
  EXPECT_EQ(Parse(j).rope.dim, 16);
  j["rope_scaling"] = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 2.0},
                       {"high_freq_factor", 5.0},
                       {"original_max_position_embeddings", 64}};
  ModelConfig c = Parse(j);
  EXPECT_EQ(c.rope.scaling, Scaling::kLlama3);
  EXPECT_EQ(c.rope.factor, 8.0);
  EXPECT_EQ(c.rope.low_freq_factor, 2.0);
  EXPECT_EQ(c.rope.high_freq_factor, 5.0);
  EXPECT_EQ(c.rope.original_max_position, 64);
  j["rope_scaling"] = {{"type", "yarn"}, {"factor", 4}, {"beta_fast", 16}, {"mscale", 0.5}};
  c = Parse(j);
  EXPECT_EQ(c.rope.scaling, Scaling::kYarn);
  EXPECT_EQ(c.rope.beta_fast, 16.0);
  EXPECT_EQ(c.rope.mscale, 0.5);
  EXPECT_EQ(c.rope.original_max_position, 256);
  // As newer files spell it.
  j.erase("rope_scaling");
  j.erase("rope_theta");
  j["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 3.0}, {"rope_theta", 7e3}};
  c = Parse(j);
  EXPECT_EQ(c.rope.scaling, Scaling::kLinear);
  EXPECT_EQ(c.rope.factor, 3.0);
  EXPECT_EQ(c.rope.theta, 7e3);
}

TEST(ModelConfigTest, ReadsARunConfig) {
  const Config config = Config::FromString(R"(
family: deepseek_v3
hidden_size: 128
intermediate_size: 256
num_hidden_layers: 4
num_attention_heads: 4
vocab_size: 272
max_position_embeddings: 1024
n_routed_experts: 8
n_shared_experts: 1
num_experts_per_tok: 2
moe_intermediate_size: 64
first_k_dense_replace: 1
kv_lora_rank: 32
qk_nope_head_dim: 16
qk_rope_head_dim: 8
v_head_dim: 16
num_nextn_predict_layers: 1
balance_loss_alpha: 1.0e-4
rope_scaling: {type: yarn, factor: 40, original_max_position_embeddings: 64}
)");
  ConfigReader reader(config);
  ModelConfig c;
  c.Read(reader);
  reader.Finish();
  EXPECT_EQ(c.family, Family::kDeepSeekV3);
  EXPECT_TRUE(c.is_mla());
  EXPECT_EQ(c.head_dim, 24);
  EXPECT_EQ(c.rope.dim, 8);
  EXPECT_EQ(c.rope_form, kernels::RopeForm::kInterleaved);
  EXPECT_EQ(c.router, kernels::RouterConfig::Kind::kSigmoidGroups);
  EXPECT_EQ(c.rope.scaling, kernels::RopeConfig::Scaling::kYarn);
  EXPECT_EQ(c.rope.original_max_position, 64);
  EXPECT_EQ(c.balance_loss_alpha, 1e-4);
  EXPECT_TRUE(c.IsMoeLayer(1));
  EXPECT_FALSE(c.IsMoeLayer(0));
}

TEST(ModelConfigTest, RunConfigMistakesNameTheKey) {
  auto read = [](const std::string& text) {
    return ErrorOf([&] {
      const Config config = Config::FromString(text, "r.yaml");
      ConfigReader reader(config);
      ModelConfig c;
      c.Read(reader);
      reader.Finish();
    });
  };
  const std::string base =
      "family: llama\nhidden_size: 64\nintermediate_size: 128\nnum_hidden_layers: 2\n"
      "num_attention_heads: 4\nvocab_size: 100\nmax_position_embeddings: 64\n";
  EXPECT_EQ(read(base), "");
  EXPECT_THAT(read(base + "num_key_value_head: 2\n"), HasSubstr("num_key_value_heads"));
  EXPECT_THAT(read(base + "n_routed_experts: 4\nmoe_intermediate_size: 8\n"
                          "num_experts_per_tok: 5\n"),
              HasSubstr("num_experts_per_tok is 5 of 4 experts"));
  for (const char* below_0 :
       {"n_routed_experts", "n_shared_experts", "first_k_dense_replace", "q_lora_rank",
        "kv_lora_rank", "balance_loss_alpha", "mtp_loss_weight", "initializer_range"}) {
    EXPECT_THAT(read(base + below_0 + ": -1\n"),
                HasSubstr(fmt::format("{} is -1; it must not be negative", below_0)));
  }
  // Those that the family's router would never look at.
  for (const char* unused : {"n_group: 2", "topk_group: 1", "bias_update_speed: 0.1"}) {
    EXPECT_THAT(read(base + unused + "\n"), HasSubstr("unknown key")) << unused;
  }
  EXPECT_THAT(read("family: lama\n"), HasSubstr("llama"));
}

TEST(ModelConfigTest, SurvivesARoundTripThroughHuggingFace) {
  json deepseek = LlamaJson();
  deepseek.update({{"model_type", "deepseek_v3"},
                   {"kv_lora_rank", 32},
                   {"q_lora_rank", 24},
                   {"qk_nope_head_dim", 16},
                   {"qk_rope_head_dim", 8},
                   {"v_head_dim", 12},
                   {"n_routed_experts", 8},
                   {"n_shared_experts", 1},
                   {"n_group", 4},
                   {"num_experts_per_tok", 2},
                   {"topk_group", 2},
                   {"first_k_dense_replace", 1},
                   {"moe_intermediate_size", 48},
                   {"norm_topk_prob", false},
                   {"routed_scaling_factor", 2.5},
                   {"num_nextn_predict_layers", 1}});
  deepseek["rope_scaling"] = {{"type", "yarn"},
                              {"factor", 4.0},
                              {"mscale", 1.0},
                              {"mscale_all_dim", 0.5},
                              {"original_max_position_embeddings", 64}};
  json qwen2 = LlamaJson();
  qwen2.update({{"model_type", "qwen2"}, {"tie_word_embeddings", true}});
  for (const json& j : {LlamaJson(), deepseek, Qwen3MoeJson(), qwen2}) {
    const ModelConfig c = Parse(j);
    const std::string written = c.ToHuggingFaceJson();
    const ModelConfig again = ModelConfig::FromHuggingFaceText(written, "written");
    EXPECT_EQ(again.ToHuggingFaceJson(), written);
    EXPECT_EQ(again.ParameterCount(true), c.ParameterCount(true));
    EXPECT_EQ(again.attention_scale(), c.attention_scale());
    EXPECT_EQ(again.norm_topk_prob, c.norm_topk_prob);
    const json w = ParseJson(written);
    for (const auto& [key, value] : j.items()) {
      if (key == "rope_scaling") continue;
      EXPECT_EQ(w.at(key), value) << key;
    }
  }
}

TEST(ModelConfigTest, WhatHuggingFaceCannotSayIsRefused) {
  ModelConfig c = Parse(LlamaJson());
  c.rope_form = kernels::RopeForm::kInterleaved;
  EXPECT_THROW(c.ToHuggingFaceJson(), ConfigError);
  c = Parse(LlamaJson());
  c.n_routed_experts = 4;
  EXPECT_THROW(c.ToHuggingFaceJson(), ConfigError);
  c = Parse(LlamaJson());
  EXPECT_EQ(ErrorOf([&] { c.CheckExportable(); }), "");
  c.num_nextn_predict_layers = 1;
  EXPECT_THAT(ErrorOf([&] { c.CheckExportable(); }), HasSubstr("num_nextn_predict_layers is 1"));
  ModelConfig moe = Parse(Qwen3MoeJson());
  EXPECT_EQ(ErrorOf([&] { moe.CheckExportable(); }), "");
  for (int64_t ModelConfig::*field :
       {&ModelConfig::n_shared_experts, &ModelConfig::first_k_dense_replace}) {
    moe.*field = 1;
    EXPECT_THAT(ErrorOf([&] { moe.CheckExportable(); }), HasSubstr("is 1: family qwen3_moe"));
    moe.*field = 0;
  }
  moe.routed_scaling_factor = 2.5;
  EXPECT_THAT(ErrorOf([&] { moe.CheckExportable(); }), HasSubstr("routed_scaling_factor is 2.5"));
}

TEST(ModelConfigTest, CountsParametersOfPublishedModels) {
  const char* data = std::getenv("HONE_DATA");
  const std::string folder = data ? std::string(data) + "/configs/" : "";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "needs HONE_DATA/configs";
  const ModelConfig v3 =
      ModelConfig::FromHuggingFace(folder + "hf_deepseek-ai--DeepSeek-V3_config.json");
  EXPECT_EQ(v3.ParameterCount(false), 671'026'419'200);
  EXPECT_NEAR(static_cast<double>(v3.ActiveParameterCount(false)), 37e9, 0.7e9);
  // 1/sqrt(192) times (0.1 ln 40 + 1)^2.
  EXPECT_NEAR(v3.attention_scale(), std::pow(0.1 * std::log(40.0) + 1, 2) / std::sqrt(192.0),
              1e-12);
  // As the publishers give them: 8.03B, 0.6B (0.44B without embedding), 30.5B (3.3B active), 1.54B.
  auto count = [&](const std::string& name) {
    return static_cast<double>(ModelConfig::FromHuggingFace(folder + name).ParameterCount(false));
  };
  EXPECT_EQ(count("hf_meta-llama--Meta-Llama-3.1-8B_config.json"), 8'030'261'248);
  EXPECT_NEAR(count("hf_Qwen--Qwen3-0.6B_config.json"), 0.6e9, 0.01e9);
  EXPECT_NEAR(count("hf_Qwen--Qwen3-30B-A3B_config.json"), 30.5e9, 0.05e9);
  EXPECT_NEAR(count("hf_Qwen2-1.5B_config.json"), 1.54e9, 0.01e9);
  EXPECT_NEAR(static_cast<double>(
                  ModelConfig::FromHuggingFace(folder + "hf_Qwen--Qwen3-30B-A3B_config.json")
                      .ActiveParameterCount(true)),
              3.3e9, 0.1e9);
}

}  // namespace
}  // namespace hone::model
