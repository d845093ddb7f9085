// Expert choice. T tokens, E experts, K chosen a token.
//
// kSoftmaxTopK (Qwen3-MoE, Mixtral): s = softmax(z); the K largest; weights s, normalised over the
// chosen if asked.
// kSigmoidGroups (DeepSeek-V3, arXiv 2412.19437 eq. 12–16): s = sigmoid(z); experts are chosen by s
// + b among the `top_groups` groups with the largest sum of their two best s + b (others masked
// with −∞); weights are s without the bias, normalised over the chosen, times `scale`. Ties go to
// the lower expert index. Scores and weights are f32 (f64 for f64 logits).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

struct RouterConfig {
  enum class Kind { kSoftmaxTopK, kSigmoidGroups };
  Kind kind = Kind::kSoftmaxTopK;
  int64_t experts = 0, top_k = 0;
  int64_t groups = 1, top_groups = 1;
  bool normalize = true;
  double scale = 1.0;
};

struct Routing {
  std::vector<int32_t> index_TK;  // host; chosen experts in ascending expert order
  Tensor weight_TK;
  Tensor score_TE;  // s, for Backward and the balance loss
};

// logits_TE f32 or f64. `bias_E` (may be null) is f32. `replay_TK`, if not empty, are the experts
// to use.
Routing Route(Context& ctx, const Tensor& logits_TE, const Tensor* bias_E,
              const RouterConfig& config, std::span<const int32_t> replay_TK = {});
// dlogits (=) from the gradient of the weights and, if defined, a gradient of the scores.
Tensor RouteBackward(Context& ctx, const Tensor& dweight_TK, const Tensor* dscore_TE,
                     const Routing& routing, const RouterConfig& config);

// DeepSeek-V3's complementary sequence-wise balance loss (eq. 17–20), for each sequence
// Σ_e f_e P_e with f_e = E/(K·T_s) · count_e and P_e = mean_t s'_te, s' = s / Σ_e s. Sequence s
// counts with `sequence_weight_S[s]` (α and the share of the step's tokens go in there). Returns
// the weighted loss and adds its gradient to dscore_TE.
double SequenceBalanceLoss(Context& ctx, const Routing& routing,
                           std::span<const int32_t> cu_seqlens,
                           std::span<const double> sequence_weight_S, const RouterConfig& config,
                           const Tensor* dscore_TE);

}  // namespace hone::kernels
