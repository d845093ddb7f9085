// CPU form of token_logprob.h, on one block of rows. Instantiated for float, double and BF16.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/token_logprob/token_logprob.h"

namespace hone::kernels::cpu {

// Fills result's rows (views of the block's tokens) from the block's logits.
template <class T>
void LogprobBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> target_B,
                  double temperature, const TokenLogprobResult& result);
// Turns the block's logits into their gradient, in place. dentropy_B may be undefined.
template <class T>
void LogprobGradientBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> target_B,
                          double temperature, const TokenLogprobResult& saved,
                          const Tensor& dlogp_B, const Tensor& dentropy_B);

}  // namespace hone::kernels::cpu
