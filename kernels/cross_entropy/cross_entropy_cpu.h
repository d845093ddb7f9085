// CPU form of cross_entropy.h, on one block of rows. Instantiated for float, double and BF16.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels::cpu {

// Fills logp_B. With `gradient`, turns the logits into the gradient of Σ weight · (−logp), in
// place.
template <class T>
void CrossEntropyBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> target_B,
                       std::span<const float> weight_B, bool gradient, const Tensor& logp_B);

}  // namespace hone::kernels::cpu
