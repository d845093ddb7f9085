// What a reward model learns: its value head, read at the last token of a sequence, is the score.
//
//   pairwise   −log σ(v_chosen − v_rejected)     helpful: [R1] App. B; Bradley–Terry, 2203.02155
//   eq. 1 pointwise  −log σ(v) for good, −log σ(−v) for bad                        safety: [R1]
//   App. B
//
// Batches come from MakePreferenceBatches: sample_S[s] is 2·item for a chosen (good) completion and
// 2·item + 1 for a rejected (bad) one; a pair stands in one batch, chosen first. An item's weight
// stands at the last token of its first sequence; all other weights are 0.
#pragma once

#include "parallel/pipeline_stage.h"

namespace hone::rl {

enum class PreferenceMode { kPairwise, kPointwise };

class RewardModelLoss : public parallel::LossFunction {
 public:
  explicit RewardModelLoss(PreferenceMode mode) : mode_(mode) {}
  bool values_only() const override { return true; }
  // Metrics, weighted sums: accuracy (the chosen scores higher; the sign of v is right), margin
  // (v_chosen − v_rejected; ±v).
  Result Evaluate(Context& ctx, const TokenBatch& batch,
                  const parallel::HeadOutput& out) const override;

 private:
  PreferenceMode mode_;
};

}  // namespace hone::rl
