#include "kernels/embedding/embedding.h"

#include "kernels/dispatch.h"
#include "kernels/embedding/embedding_cpu.h"
#include "kernels/embedding/embedding_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "embedding";

// The shape of a row of the table for each token; the tokens are checked.
Shape RowsShape(const Tensor& table_VD, std::span<const int32_t> token_T) {
  CheckShape(table_VD.ndim() == 2, "[{}] table has shape {}, expected [vocabulary, dim]", kOp,
             runtime::ShapeToString(table_VD.shape()));
  int64_t vocab = table_VD.dim(0);
  for (size_t t = 0; t < token_T.size(); ++t) {
    CheckShape(token_T[t] >= 0 && token_T[t] < vocab,
               "[{}] token {} at position {} is outside the vocabulary [0, {})", kOp, token_T[t], t,
               vocab);
  }
  return {static_cast<int64_t>(token_T.size()), table_VD.dim(1)};
}

}  // namespace

Tensor Embedding(Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T) {
  CheckTensor(kOp, "table", ctx, table_VD, table_VD.dtype());
  Tensor y_TD = ctx.Empty(RowsShape(table_VD, token_T), table_VD.dtype());
  SwitchFloat(kOp, table_VD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Embedding<T>(ctx, table_VD, token_T, y_TD); },
        [&] { cuda::Embedding<T>(ctx, table_VD, token_T, y_TD); });
  });
  return y_TD;
}

void EmbeddingBackward(Context& ctx, const Tensor& dy_TD, std::span<const int32_t> token_T,
                       const Tensor& dtable_VD) {
  CheckTensor(kOp, "dtable", ctx, dtable_VD, AccDType(dy_TD.dtype()));
  CheckTensor(kOp, "dy", ctx, dy_TD, dy_TD.dtype(), RowsShape(dtable_VD, token_T));
  SwitchFloat(kOp, dy_TD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::EmbeddingBackward<T>(ctx, dy_TD, token_T, dtable_VD); },
        [&] { cuda::EmbeddingBackward<T>(ctx, dy_TD, token_T, dtable_VD); });
  });
}

void SetRows(Context& ctx, const Tensor& table_VD, std::span<const int32_t> row_T,
             const Tensor& x_TD) {
  CheckTensor(kOp, "table", ctx, table_VD, table_VD.dtype());
  CheckTensor(kOp, "rows", ctx, x_TD, table_VD.dtype(), RowsShape(table_VD, row_T));
  SwitchFloat(kOp, table_VD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::SetRows<T>(table_VD, row_T, x_TD); },
        [&] { cuda::SetRows<T>(ctx, table_VD, row_T, x_TD); });
  });
}

}  // namespace hone::kernels
