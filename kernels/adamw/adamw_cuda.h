// CUDA form of adamw.h.
#pragma once

#include <vector>

#include "kernels/adamw/adamw.h"

namespace hone::kernels::cuda {

// One launch for all tensors of the same dtypes.
void AdamW(Context& ctx, const std::vector<AdamWTensor>& tensors, const AdamWStep& step);

// Σ x² of each tensor; contiguous, all of one float dtype. Waits for the device once.
std::vector<double> SumsOfSquares(Context& ctx, const std::vector<Tensor>& tensors);

}  // namespace hone::kernels::cuda
