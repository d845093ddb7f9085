// The likeliest tokens of a row of logits, beside what was drawn from it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/sampling/sampling.h"

namespace hone::kernels {

// The `count` likeliest tokens of logits_1V, the likeliest first, equal ones by id; all of them
// where the vocabulary is smaller. Their log-probabilities are those that Sample would record of
// them: of softmax(z / temperature), of softmax(z) where decoding is greedy. Reads on the host,
// wherever the row is.
std::vector<SampledToken> Likeliest(const Tensor& logits_1V, double temperature, int64_t count);

}  // namespace hone::kernels
