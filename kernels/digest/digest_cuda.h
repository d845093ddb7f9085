// CUDA form of digest.h.
#pragma once

#include <vector>

#include "kernels/digest/digest.h"

namespace hone::kernels::cuda {

RowDigest DigestRows(Context& ctx, const std::vector<DigestInput>& inputs);

}  // namespace hone::kernels::cuda
