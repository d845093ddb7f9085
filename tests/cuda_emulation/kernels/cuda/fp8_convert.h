// The emulator's form of kernels/cuda/fp8_convert.h.
#pragma once

#include "kernels/fp8/e4m3.h"

namespace hone::kernels::cuda {

using kernels::ToE4M3;

}  // namespace hone::kernels::cuda
