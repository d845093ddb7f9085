// The one form in which tokens reach a model: sequences laid end to end, no padding.
//
// T tokens, S sequences, V slots of spliced embeddings, L MoE layers, K routed experts a token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace hone::runtime {

// Host data: kernels that run on a device copy what they need once a microbatch.
//
// The loss of a step is Σ_t loss_weight_T[t] · ℓ_t over every batch of the step, with the weights fixed
// globally beforehand; so completion masks, GRPO's 1/(G|o|), token means and any data-parallel split
// are only data.
struct TokenBatch {
  std::vector<int32_t> token_T;        // inputs
  std::vector<int32_t> target_T;       // what token t is to predict; kNoTarget where nothing
  std::vector<int32_t> position_T;     // position inside its own sequence, for RoPE
  std::vector<int32_t> cu_seqlens;     // S + 1 offsets; attention never crosses them
  std::vector<float> loss_weight_T;    // 0 where the token takes no part in the loss

  // Optional: rows that replace the embedding of the tokens at `embedding_slot_V` (images, sound).
  Tensor embedding_VD;
  std::vector<int32_t> embedding_slot_V;

  // Optional: expert choices to replay instead of routing, [T, L, K] flattened; empty if not.
  std::vector<int32_t> routing_TLK;

  // What PolicyLoss reads, one value a token: log-probabilities when sampled, of the policy before the
  // rollout's first step ("old"), of the reference; and the advantage. Empty outside RL.
  std::vector<float> sampled_logp_T, old_logp_T, reference_logp_T, advantage_T;
  std::vector<int32_t> sample_S;       // which sample a sequence is, for sequence-level losses

  static constexpr int32_t kNoTarget = -100;
  int64_t tokens() const { return static_cast<int64_t>(token_T.size()); }
  int64_t sequences() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
  // Throws ShapeError naming the first field whose length or content does not fit; `where` begins the
  // message.
  void Validate(int64_t vocab_size, int64_t max_position, const std::string& where) const;
};

}  // namespace hone::runtime

namespace hone {
using runtime::TokenBatch;
}  // namespace hone
