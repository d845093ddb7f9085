// What the coordinator tells a worker at registration: enough to build the model, the tokenizer and
// the engine without any file of the run.
#pragma once

#include <string>
#include <vector>

#include "model/model_config.h"
#include "rl/rollout/inference_engine.h"

namespace hone::rl {

struct WorkerConfig {
  model::ModelConfig model;
  std::string tokenizer;
  std::vector<std::string> special_tokens;
  DType dtype = DType::kF32;
  Numerics numerics = Numerics::kBatchInvariant;  // of engine and readers
  EngineConfig engine;
};

std::string WriteWorkerConfig(const WorkerConfig& config);
WorkerConfig ReadWorkerConfig(const std::string& text);
// Of model config and tokenizer: worker and learner compute it each for itself.
std::string ModelDigest(const model::ModelConfig& model, const std::string& tokenizer_digest);

}  // namespace hone::rl
