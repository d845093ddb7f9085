// Policy-gradient losses as pure functions from per-token log-probabilities to a loss and its
// gradient.
//
// Token t of sample i has current logp ℓ, old logp (of the policy before the rollout's first step),
// sampled logp (of the worker), reference logp, advantage A and weight w
// (TokenBatch::loss_weight_T), so that
//   loss = Σ_t w_t · ( −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) + β · k3 ),  ρ = exp(ℓ − old)
//   k3 = exp(ref − ℓ) − (ref − ℓ) − 1                                    [GRPO, 2402.03300 eq. 3–4]
// TokenBatch::old_logp_T may be empty: then the policy that runs the forward is the old one, ρ = 1.
// The weights carry the averaging: 1/(G |o|) for GRPO, 1/(Σ tokens) for DAPO and token means, 1/(G
// · L_max) for Dr.GRPO.
#pragma once

#include <string>
#include <vector>

#include "parallel/pipeline_stage.h"

namespace hone::rl {

struct PolicyLossConfig {
  enum class Ratio {
    kToken,  // ρ_t of each token
    kSequence  // GSPO: exp(mean_t(ℓ − old)) of the sequence, clipped as one    [2507.18071 eq. 5–7]
  };
  Ratio ratio = Ratio::kToken;
  double clip_low = 0.2, clip_high = 0.2;  // clip_low ≥ 1: the lower bound is inactive
  double kl_coefficient = 0.001;           // β
  double entropy_coefficient = 0.0;
  double temperature = 1.0;
  // Truncated importance correction for samples drawn by other weights (or another engine):
  // × min(exp(old − sampled), cap); 0: none.                                  [IMPALA, 1802.01561
  // §4.1]
  double importance_cap = 0.0;
};

class PolicyLoss : public parallel::LossFunction {
 public:
  explicit PolicyLoss(const PolicyLossConfig& config) : config_(config) {}
  bool needs_entropy() const override;
  double temperature() const override { return config_.temperature; }
  // Metrics (sums, weighted by w unless said): policy_loss kl clip_fraction entropy ratio tokens
  // logprob_gap (Σ|ℓ − sampled|, unweighted) largest_logprob_gap importance_weight.
  Result Evaluate(Context& ctx, const TokenBatch& batch,
                  const parallel::HeadOutput& out) const override;

 private:
  PolicyLossConfig config_;
};

// −Σ w log p: SFT and pretraining.
class CrossEntropyLoss : public parallel::LossFunction {
 public:
  bool is_cross_entropy() const override { return true; }
  Result Evaluate(Context& ctx, const TokenBatch& batch,
                  const parallel::HeadOutput& out) const override;
};

}  // namespace hone::rl
