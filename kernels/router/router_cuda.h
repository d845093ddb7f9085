// CUDA form of router.h. Instantiated for float and double.
#pragma once

#include <span>

#include "kernels/router/router.h"

namespace hone::kernels::cuda {

// As cpu::Route. Waits for the device: the choice is wanted on the host.
template <class A>
void Route(Context& ctx, const Tensor& logits_TE, const Tensor* bias_E, const RouterConfig& config,
           bool replay, Routing& routing);
template <class A>
void RouteBackward(Context& ctx, const Tensor& dweight_TK, const Tensor* dscore_TE,
                   const Routing& routing, const RouterConfig& config, const Tensor& dlogits_TE);
// All sequences at once. Returns Σ_s weight_s · Σ_e f_e P_e.
template <class A>
double SequenceBalance(Context& ctx, const Routing& routing, std::span<const int32_t> cu_seqlens,
                       std::span<const double> sequence_weight_S, const RouterConfig& config,
                       const Tensor* dscore_TE);

}  // namespace hone::kernels::cuda
