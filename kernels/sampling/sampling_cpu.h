// CPU form of sampling.h. Instantiated for float, double and BF16.
#pragma once

#include <span>
#include <vector>

#include "kernels/sampling/sampling.h"

namespace hone::kernels::cpu {

template <class T>
void Sample(Context& ctx, const Tensor& logits_BV, std::span<const SamplingParams> params_B,
            std::span<const double> uniform_B, std::vector<SampledToken>& out);

}  // namespace hone::kernels::cpu
