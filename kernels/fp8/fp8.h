// Products in fp8 as DeepSeek-V3 trains (arXiv 2412.19437, section 3.3): E4M3 with an f32 scale for
// each tile of 1 × 128 along the summed dim of activations and gradients, and for each block of 128
// × 128 of a weight.
//
//   y  = x · wᵀ     x in tiles along K, w in blocks
//   dx = dy · w     dy in tiles along N, w in the same blocks, transposed
//   dw += dyᵀ · x   both transposed, in tiles along the tokens; the sum is f32
//
// A scale is amax / 448, so the largest element of a tile is exact up to rounding of the scale; a
// tile of zeros has scale 1, and one of numbers below 448 · 2^−126 has 2^−126. Not batch invariant:
// the libraries choose an algorithm by shape. Embedding, head, norms, router and attention stay in
// higher precision: callers do not come here with them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

inline constexpr int64_t kFp8Tile = 128;
inline constexpr int64_t kFp8RowMultiple = 16;  // what cuBLASLt wants of rows and of the summed dim

// A matrix [rows, cols] whose rows are summed over: `values` has both dims rounded up to a multiple
// of kFp8RowMultiple by zeros. Tiles: scale_LR [⌈cols/128⌉, rows rounded up]. Blocks: scale
// [⌈rows/128⌉, ⌈cols/128⌉ rounded up to a multiple of 4]. Both as cuBLASLt reads them.
struct Fp8Matrix {
  Tensor values;
  Tensor scale;
  int64_t rows = 0, cols = 0;
  bool blocks = false;
};

// x [R, C], f32 or bf16, contiguous last dim.
Fp8Matrix QuantizeRows(Context& ctx, const Tensor& x_RC);     // tiles along C
Fp8Matrix QuantizeColumns(Context& ctx, const Tensor& x_RC);  // of xᵀ [C, R], tiles along R
Fp8Matrix QuantizeBlocks(Context& ctx, const Tensor& w_RC);
Fp8Matrix QuantizeBlocksTransposed(Context& ctx, const Tensor& w_RC);  // of wᵀ: the same numbers
Tensor Dequantize(Context& ctx, const Fp8Matrix& m);  // f32 [rows, cols], on the host: for tests
// Of values and scales in blocks.
int64_t Fp8BlocksBytes(int64_t rows, int64_t cols);

// out [M, N] = a [M, K] · b [N, K]ᵀ in bf16 or f32, or out += it (f32 only). Not both in blocks.
// `out` may be a view; tiles' products are summed in f32.
void Fp8Multiply(Context& ctx, const Fp8Matrix& a_MK, const Fp8Matrix& b_NK, const Tensor& out_MN,
                 bool accumulate = false);

// As kernels/linear/linear.h, whose gradient convention they share; x, dy and w in bf16 or f32.
// Where ctx.packed_weights keeps fp8, a weight is quantised once for y and once for dx.
Tensor Fp8Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK);
Tensor Fp8LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK);
void Fp8LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                             const Tensor& dw_NK);

// As kernels/grouped_gemm/grouped_gemm.h: expert e has the rows [offset[e], offset[e + 1]).
Tensor Fp8GroupedLinear(Context& ctx, const Tensor& x_RK, const Tensor& w_ENK,
                        const std::vector<int64_t>& offset_E);
Tensor Fp8GroupedLinearInputGradient(Context& ctx, const Tensor& dy_RN, const Tensor& w_ENK,
                                     const std::vector<int64_t>& offset_E);
void Fp8GroupedLinearWeightGradient(Context& ctx, const Tensor& dy_RN, const Tensor& x_RK,
                                    const Tensor& dw_ENK, const std::vector<int64_t>& offset_E);

}  // namespace hone::kernels
