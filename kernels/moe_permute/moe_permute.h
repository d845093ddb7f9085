// Sorting tokens by expert and back. T tokens, K experts a token, R = T·K rows.
//
// Rows are ordered by (expert, token). Combining adds a token's K rows in ascending expert order,
// so the result does not depend on the batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/context.h"

namespace hone::kernels {

struct Permutation {
  std::vector<int32_t> row_TK;    // where token t's k-th row went
  std::vector<int32_t> token_R;   // the token of each row
  std::vector<int64_t> offset_E;  // E + 1 entries: rows of each expert
};
// index_TK [T·K] must lie in [0, experts).
Permutation MakePermutation(std::span<const int32_t> index_TK, int64_t top_k, int64_t experts);

Tensor Permute(Context& ctx, const Tensor& x_TD, const Permutation& permutation);
// y_t = Σ_k weight[t, k] · rows[row[t, k]]; without weights (undefined tensor) a plain sum, which
// is the backward of Permute.
Tensor Unpermute(Context& ctx, const Tensor& rows_RD, const Tensor& weight_TK,
                 const Permutation& permutation);
struct UnpermuteGradients {
  Tensor drows_RD, dweight_TK;
};
UnpermuteGradients UnpermuteBackward(Context& ctx, const Tensor& dy_TD, const Tensor& rows_RD,
                                     const Tensor& weight_TK, const Permutation& permutation);

}  // namespace hone::kernels
