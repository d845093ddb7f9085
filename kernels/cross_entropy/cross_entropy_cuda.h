// CUDA form of cross_entropy.h, on one block of rows. Instantiated for float, double and BF16.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels::cuda {

// `row_B`: the tokens whose logits the block holds, each with a target. Fills their entries of
// logp_T; with `gradient`, turns the logits into the gradient of Σ weight · (−logp), in place.
template <class T>
void CrossEntropyBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                       std::span<const int32_t> target_T, std::span<const float> weight_T,
                       bool gradient, const Tensor& logp_T);

}  // namespace hone::kernels::cuda
