// The model, engine and tokenizer that a worker builds from what the coordinator told it.
#pragma once

#include <memory>
#include <string>

#include "data/tokenizer.h"
#include "model/transformer_stage.h"
#include "rl/rollout/inference_engine.h"

namespace hone::rl {

class WorkerModel {
 public:
  // `text` is WriteWorkerConfig's (worker_config.h).
  WorkerModel(const std::string& text, int threads);
  ~WorkerModel();

  const std::string& digest() const { return digest_; }
  int64_t max_batch() const { return engine_config_.max_batch; }
  InferenceEngine& engine() { return *engine_; }
  SlabIndex State() { return model_->State(); }
  // Fills text and the thinking_tokens measure of a finished sample.
  void Describe(Sample* sample) const;

 private:
  std::unique_ptr<data::Tokenizer> tokenizer_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<model::TransformerStage> model_;
  EngineConfig engine_config_;
  std::unique_ptr<InferenceEngine> engine_;
  std::string digest_;
  int32_t think_ = -1, think_end_ = -1;
};

}  // namespace hone::rl
