// CPU form of sampling.h. Instantiated for float, double and BF16.
#pragma once

#include <vector>

#include "kernels/sampling/sampling.h"

namespace hone::kernels::cpu {

// One row. `scratch` is reused between rows.
template <class T>
struct SampleScratch {
  std::vector<runtime::Acc<T>> z, exp_z;
  std::vector<int32_t> order;
};
template <class T>
SampledToken SampleRow(const T* logits, int64_t vocab, const SamplingParams& params, double uniform,
                       SampleScratch<T>& scratch);

}  // namespace hone::kernels::cpu
