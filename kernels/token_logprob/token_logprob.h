// Log-probability and entropy of given tokens under softmax(x · wᵀ / temperature), without ever
// holding T×V logits: rows are worked in blocks.
//
// T tokens, D model dim, V vocabulary. A target of TokenBatch::kNoTarget gives 0 everywhere, no
// gradient and costs no GEMM. Results in f32 (f64 for f64). Batch invariant; the same bits as
// sampling/ gives for the token it draws.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels {

// Temperatures lie in here: logits over others may not fit f32.
inline constexpr double kLeastTemperature = 1e-6, kGreatestTemperature = 1e6;

struct TokenLogprobResult {
  Tensor logp_T;
  Tensor entropy_T;  // of the whole distribution, in nats; undefined when not asked for
  Tensor lse_T;      // log Σ exp(z / temperature)
};
TokenLogprobResult TokenLogprob(Context& ctx, const Tensor& x_TD, const Tensor& w_VD,
                                std::span<const int32_t> target_T, double temperature,
                                bool with_entropy);
// Recomputes the logits a block at a time. dx is returned (=), dw is added (+=).
// dentropy_T may be undefined.
Tensor TokenLogprobBackward(Context& ctx, const Tensor& dlogp_T, const Tensor& dentropy_T,
                            const Tensor& x_TD, const Tensor& w_VD,
                            std::span<const int32_t> target_T, double temperature,
                            const TokenLogprobResult& saved, const Tensor& dw_VD);

}  // namespace hone::kernels
