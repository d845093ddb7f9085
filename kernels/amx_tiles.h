// What the matrix unit's forms of numbers share (kernels/amx_gemm.h). Only where the build's
// instruction set has the unit: HONE_HAS_AMX.
//
// Both operands are packed in panels of 32 rows of A or columns of B: for each step over k, for
// each half of the panel, tiles of 16 rows of 64 bytes. A form, as amx_bf16_parts.h and
// amx_fixed_point.h have them, is
//   Element                  what a matrix holds,
//   PanelSize(kc)            bytes of a panel of kc of k, a multiple of 64,
//   Pack<is_left>(…)         packs `lines` ≤ 32 rows of A, or columns of B, and k in [0, kc); line
//                            i's k-th element is from[i · stride + k] when by_k, else from[k ·
//                            stride + i],
//   Multiply(…)              c[32, 32] (+)= a · b of two panels, as far as rows and cols reach.
#pragma once

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BW__)
#define HONE_HAS_AMX
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/simd.h"
#include "kernels/vec_math.h"

namespace hone::kernels::amx {

inline constexpr int64_t kHalf = 16;  // rows of a tile
inline constexpr int64_t kPanel = 2 * kHalf;

// The registers' shape: eight tiles of 16 rows of 64 bytes. Its layout is the instruction's.
struct alignas(64) TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// While a thread has one, its tile registers are ready; without, the system need not save them.
class Tiles {
 public:
  Tiles() {
    const TileShape shape;
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

using Bits = uint32_t __attribute__((vector_size(64)));

// to[j][i] = from[i][j] of a square of 16.
inline void TransposeSquare(const float* from, int64_t stride, float* to, int64_t to_stride) {
  __m512 column[kHalf];
  LoadTransposed<float>(from, stride, column);
  Unroll<kHalf>([&](auto j) { _mm512_store_ps(to + j * to_stride, column[j]); });
}

}  // namespace hone::kernels::amx

#endif
