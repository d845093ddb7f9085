// CPU form of router.h. Instantiated for float and double.
#pragma once

#include "kernels/router/router.h"

namespace hone::kernels::cpu {

// Fills routing.score_TE, weight_TK and, unless `replay`, index_TK, all allocated by the caller.
template <class A>
void Route(Context& ctx, const Tensor& logits_TE, const Tensor* bias_E, const RouterConfig& config,
           bool replay, Routing& routing);
template <class A>
void RouteBackward(Context& ctx, const Tensor& dweight_TK, const Tensor* dscore_TE,
                   const Routing& routing, const RouterConfig& config, const Tensor& dlogits_TE);
// One sequence: tokens [begin, end). Returns weight · Σ_e f_e P_e.
template <class A>
double SequenceBalance(Context& ctx, const Routing& routing, int64_t begin, int64_t end,
                       double weight, const RouterConfig& config, const Tensor* dscore_TE);

}  // namespace hone::kernels::cpu
