// The model, engine and tokenizer that a worker builds from what the coordinator told it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "model/transformer_stage.h"
#include "rl/rollout/sequence_reader.h"
#include "rl/rollout/worker_config.h"

namespace hone::rl {

class WorkerModel {
 public:
  // `text` is WriteWorkerConfig's (worker_config.h).
  WorkerModel(const std::string& text, int threads, Device device = {});
  ~WorkerModel();

  const std::string& digest() const { return digest_; }
  int64_t max_batch() const { return config_.engine.max_batch; }
  int64_t max_tokens() const { return config_.engine.max_tokens; }
  InferenceEngine& engine() { return *engine_; }
  SlabIndex State() { return model_->State(); }
  // Fills text and the thinking_tokens measure of a finished sample; the token that ended it, one
  // of `stop_ids`, is no part of the text.
  void Describe(Sample* sample, const std::vector<int32_t>& stop_ids) const;
  // What the model wrote since the last token that is not its own.
  std::string LastTurn(const Sample& sample) const;
  std::vector<int32_t> Encode(const std::string& text) const { return tokenizer_->Encode(text); }
  // The frozen model for leases of that kind, beside the engine's and made when first asked for.
  SequenceReader& Reader(LeaseKind kind);
  // Whether this worker and the learner take turns with memory.
  bool takes_turns() const { return config_.engine.lazy_cache; }
  // Gives back all memory but the weights': the engine's cache, frozen models, what allocators
  // keep. The engine has nothing pending. It comes back by itself when it is needed.
  void ReleaseMemory();
  // DeviceError where the device has failed for good: CUDA then wants another process.
  void CheckDevice() { ctx_->stream().Synchronize(); }

 private:
  // Text of tokens. A model's vocabulary may be padded beyond its tokenizer's: such a token is
  // drawn, but spells nothing.
  std::string Spell(const std::vector<int32_t>& ids) const;

  WorkerConfig config_;
  int threads_;
  std::unique_ptr<data::Tokenizer> tokenizer_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<model::TransformerStage> model_;
  std::unique_ptr<InferenceEngine> engine_;
  std::map<LeaseKind, std::unique_ptr<SequenceReader>> readers_;
  std::string digest_;
  int32_t think_ = -1, think_end_ = -1;
};

}  // namespace hone::rl
