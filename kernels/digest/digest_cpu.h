// CPU form of digest.h.
#pragma once

#include <vector>

#include "kernels/digest/digest.h"

namespace hone::kernels::cpu {

RowDigest DigestRows(const std::vector<DigestInput>& inputs);

}  // namespace hone::kernels::cpu
