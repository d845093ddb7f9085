// CUDA form of rope.h. Instantiated for float, double and BF16.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/rope/rope.h"

namespace hone::kernels::cuda {

template <class T>
void Rope(Context& ctx, const Tensor& x_THR, std::span<const int32_t> position_T,
          const RopeTable& table, RopeForm form, bool inverse);

}  // namespace hone::kernels::cuda
