// Table lookup. T tokens, V vocabulary, D model dim. A token outside [0, V) is a ShapeError.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels {

Tensor Embedding(Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T);
// dtable += ; in token order, so deterministic.
void EmbeddingBackward(Context& ctx, const Tensor& dy_TD, std::span<const int32_t> token_T,
                       const Tensor& dtable_VD);

// table[row_T[t]] = x[t], of one dtype. Rows that are named twice must be given equal values.
void SetRows(Context& ctx, const Tensor& table_VD, std::span<const int32_t> row_T,
             const Tensor& x_TD);

}  // namespace hone::kernels
