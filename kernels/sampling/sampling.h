// Drawing tokens from logits. B rows, V vocabulary.
//
// The recorded log-probability is always of softmax(z / temperature) untruncated (temperature 1
// where decoding is greedy), with the same bits as token_logprob. Top-k, then top-p, restrict what
// can be drawn. A token less likely than 2^−40 of the likeliest is never drawn. The same logits
// give the same token on every device.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

struct SamplingParams {
  double temperature = 1.0;  // 0: greedy, ties to the lowest id; else as token_logprob's
  double top_p = 1.0;
  int64_t top_k = 0;  // 0: all
};
struct SampledToken {
  int32_t token;
  float logp;
};
// uniform_B in [0, 1): the draw, from the sample's own RandomStream. Rows are independent.
std::vector<SampledToken> Sample(Context& ctx, const Tensor& logits_BV,
                                 std::span<const SamplingParams> params_B,
                                 std::span<const double> uniform_B);

}  // namespace hone::kernels
