// Continuous batching over a paged KV cache, with the training model's own forward.
//
// A sample's tokens depend on (seed stream, weights, prompt, sampling parameters) and on nothing
// else: not on what shares its batch, when it was admitted, nor whether it was preempted. Not
// thread safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/sampling/sampling.h"
#include "model/transformer_stage.h"
#include "rl/rollout/sample.h"
#include "runtime/context.h"
#include "runtime/philox.h"

namespace hone::rl {

struct EngineConfig {
  int64_t max_batch = 64;       // sequences decoding at once
  int64_t page_size = 64;       // tokens
  int64_t cache_pages = 0;      // 0: enough for max_batch sequences of max_tokens
  int64_t prefill_chunk = 256;  // prompt tokens a step, over all sequences
  int64_t max_tokens = 512;     // prompt and completion of one sequence
  model::MlaDecode mla_decode = model::MlaDecode::kExpand;
  bool record_routing = false;
  bool lazy_cache = false;  // made when the first request comes
  bool replay = true;       // decode steps on a GPU (runtime/replay.h); changes no bit
};

// Pages of a cache in which a sequence of up to `tokens` tokens can run: its own, and one for a
// copy when its prompt is shared.
int64_t PagesForSequence(int64_t tokens, int64_t page_size);

// One sequence to complete.
struct GenerateRequest {
  uint64_t id = 0;  // the caller's
  std::vector<int32_t> prompt;
  // Tokens already drawn with older weights (a continued lease): kept, their keys computed anew.
  std::vector<int32_t> generated;
  int64_t max_new_tokens = 256;  // counts `generated`
  kernels::SamplingParams sampling;
  std::vector<int32_t> stop_ids;          // the stop token is part of the completion
  std::vector<std::string> stop_strings;  // need the engine's `token_bytes`
  RandomStream stream{0};                 // position = index of the drawn token in the completion
  uint64_t group = 0;     // requests of one group with equal prompts share its pages; 0: none
  int64_t likeliest = 0;  // how many of the likeliest tokens `on_token` is shown at each position
};

// A token as it was drawn, and what else was likely there (GenerateRequest::likeliest).
struct DrawnToken {
  int32_t token = 0;
  float logp = 0;
  std::vector<kernels::SampledToken> likeliest;
};

struct GenerateResult {
  uint64_t id = 0;
  std::vector<int32_t> tokens;  // the completion, `generated` included
  std::vector<float> logp;      // of the newly drawn ones: tokens.size() − generated.size()
  FinishReason finish = FinishReason::kStop;
  std::vector<int32_t> routing_TLK;  // of prompt + completion − 1 tokens when recorded
};

struct EngineStats {
  int64_t steps = 0, prefill_tokens = 0, decoded_tokens = 0, preemptions = 0, shared_pages = 0;
  int64_t replayed_steps = 0;   // forwards that a GPU was given as graphs (runtime/replay.h)
  int64_t replayed_graphs = 0;  // of those: one each, with experts two more a layer of them
};

class InferenceEngine {
 public:
  // `model` holds the whole model and outlives the engine. `token_bytes` gives a token's bytes, for
  // stop strings (may be null).
  InferenceEngine(Context& ctx, model::TransformerStage& model, const EngineConfig& config,
                  std::function<std::string(int32_t)> token_bytes = nullptr);
  ~InferenceEngine();

  // ShapeError when the prompt does not fit `max_tokens` or the vocabulary.
  void Add(GenerateRequest request);
  bool Cancel(uint64_t id);
  // One forward over what is active: chunks of prompts and one token of each decoding sequence.
  // Returns what finished. `on_token` (may be null) sees each drawn token at once: streaming.
  std::vector<GenerateResult> Step(
      const std::function<void(uint64_t id, const DrawnToken& drawn)>& on_token = nullptr);
  int64_t pending() const;  // added and not finished
  // Stops everything and hands it back unfinished (finish = kCancelled): before new weights, or to
  // give leases back. The cache is cleared: no key of old weights is ever used.
  std::vector<GenerateResult> Drain();
  // Gives the memory of cache and graphs back until a request comes. Nothing may be pending.
  void ReleaseCache();
  EngineStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::rl
