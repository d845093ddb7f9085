// CUDA form of embedding.h. Instantiated for float, double and BF16.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/context.h"

namespace hone::kernels::cuda {

template <class T>
void Embedding(Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T,
               const Tensor& y_TD);
template <class T>
void EmbeddingBackward(Context& ctx, const Tensor& dy_TD, std::span<const int32_t> token_T,
                       const Tensor& dtable_VD);

// y[index_R[r]] = rows[r]; indices differ.
template <class T>
void ScatterRows(Context& ctx, const Tensor& rows_RD, std::span<const int32_t> index_R,
                 const Tensor& y_TD);

}  // namespace hone::kernels::cuda
