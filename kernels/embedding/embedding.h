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

}  // namespace hone::kernels
