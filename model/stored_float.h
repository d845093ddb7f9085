// Number formats that checkpoints are stored in and that nothing is computed in: IEEE half, and
// DeepSeek-V3's fp8, a matrix of f8_e4m3 with an f32 factor for each block of 128 × 128 (published
// as NAME_scale_inv; blocks at the lower and right edge may be cut off).
#pragma once

#include <cstdint>

#include "runtime/tensor.h"

namespace hone::model {

inline constexpr int64_t kScaleBlock = 128;  // rows and columns that share a factor

// Exact.
float HalfToFloat(uint16_t bits);
float F8E4M3ToFloat(uint8_t bits);  // the "fn" form: no infinities, 0x7f and 0xff are NaN

// ⌈rows / 128⌉ × ⌈columns / 128⌉ of a matrix of that shape.
Shape ScaleShape(const Shape& matrix);

// As many elements as `out` has, which is contiguous f32, bf16 or f64 on the host.
void DecodeHalf(const uint16_t* from, const Tensor& out);
// Rows first_row, first_row + 1, … of the matrix that `from` and all of `scale` belong to; `from`
// points to the first of them. The product is taken in f32 and rounded once to out's type.
void DecodeScaledF8(const uint8_t* from, int64_t first_row, const Tensor& scale,
                    const Tensor& out_RC);

}  // namespace hone::model
