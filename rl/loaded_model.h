// A model for inference, from wherever one is kept.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/transformer_stage.h"
#include "rl/rollout/inference_engine.h"

namespace hone::rl {

// What a path names; found without reading a weight.
struct ModelFiles {
  std::string weights;      // the folder that holds them
  bool checkpoint = false;  // hone's (index.h5), else Hugging Face's (safetensors)
  std::string companions;   // the folder of config.json, tokenizer and template; "" for none
  model::ModelConfig config;
  DType dtype = DType::kF32;  // of the embedding as saved
  std::string tokenizer;      // as LoadTokenizer takes it; "" when there is none
  std::vector<std::string> special_tokens;
};
// `path`: a Hugging Face folder; a checkpoint folder with config.json in it, as `hone import`
// writes; a checkpoint of a run, RUN/checkpoints/STAGE/step-N; or RUN/checkpoints/STAGE or RUN, of
// which the newest is taken. ConfigError says what is missing.
ModelFiles FindModel(const std::string& path);

// Where the weights are that `path` names, in the same ways. ConfigError when there are none.
std::string FolderOfPolicy(const std::string& path);

struct LoadedModel {
  ModelFiles files;
  std::unique_ptr<Context> ctx;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::optional<data::ChatTemplate> chat_template;
  std::vector<int32_t> stop_ids;  // eos, and what config.json and generation_config.json add
  std::unique_ptr<model::TransformerStage> stage;

  // A token's bytes; U+FFFD for those of a vocabulary padded beyond the tokenizer's.
  std::string TokenBytes(int32_t id) const;
};
struct LoadOptions {
  std::string tokenizer;      // instead of the model's own
  std::string chat_template;  // a name or a folder, instead of the model's own
  int threads = 1;
  bool absorb = false;  // MLA decodes with the small cache
};
// All of it but the weights, which are whatever memory holds.
LoadedModel MakeModel(const ModelFiles& files, const LoadOptions& options);
// The whole model on this process, without value head and multi-token prediction where the source
// lets them be left out.
LoadedModel LoadModelForInference(const std::string& path, const LoadOptions& options);

}  // namespace hone::rl
