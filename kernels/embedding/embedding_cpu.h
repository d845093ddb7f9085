// CPU form of embedding.h. Instantiated for float, double and BF16.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels::cpu {

template <class T>
void Embedding(Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T,
               const Tensor& y_TD);
template <class T>
void EmbeddingBackward(Context& ctx, const Tensor& dy_TD, std::span<const int32_t> token_T,
                       const Tensor& dtable_VD);
template <class T>
void SetRows(const Tensor& table_VD, std::span<const int32_t> row_T, const Tensor& x_TD);

}  // namespace hone::kernels::cpu
