// CUDA form of token_logprob.h, on one block of rows. Instantiated for float, double and BF16.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/token_logprob/token_logprob.h"

namespace hone::kernels::cuda {

// `row_B`: the tokens whose logits the block holds. Fills their entries of `result`.
template <class T>
void LogprobBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                  std::span<const int32_t> target_T, double temperature,
                  const TokenLogprobResult& result);
// Turns the block's logits into their gradient, in place. dentropy_T may be undefined.
template <class T>
void LogprobGradientBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                          std::span<const int32_t> target_T, double temperature,
                          const TokenLogprobResult& saved, const Tensor& dlogp_T,
                          const Tensor& dentropy_T);

}  // namespace hone::kernels::cuda
