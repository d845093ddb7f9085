#include "kernels/embedding/embedding.h"

#include "kernels/dispatch.h"
#include "kernels/embedding/embedding_cpu.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "embedding";

void CheckTokens(const Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T) {
  RequireCpu(kOp, ctx);
  CheckShape(table_VD.ndim() == 2, "[{}] table has shape {}, expected [vocabulary, dim]", kOp,
             runtime::ShapeToString(table_VD.shape()));
  int64_t vocab = table_VD.dim(0);
  for (size_t t = 0; t < token_T.size(); ++t) {
    CheckShape(token_T[t] >= 0 && token_T[t] < vocab,
               "[{}] token {} at position {} is outside the vocabulary [0, {})", kOp, token_T[t], t,
               vocab);
  }
}

}  // namespace

Tensor Embedding(Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T) {
  CheckTensor(kOp, "table", ctx, table_VD, table_VD.dtype());
  CheckTokens(ctx, table_VD, token_T);
  Tensor y_TD =
      ctx.Empty({static_cast<int64_t>(token_T.size()), table_VD.dim(1)}, table_VD.dtype());
  SwitchFloat(kOp, table_VD.dtype(),
              [&](auto t) { cpu::Embedding<decltype(t)>(ctx, table_VD, token_T, y_TD); });
  return y_TD;
}

void EmbeddingBackward(Context& ctx, const Tensor& dy_TD, std::span<const int32_t> token_T,
                       const Tensor& dtable_VD) {
  CheckTensor(kOp, "dtable", ctx, dtable_VD, AccDType(dy_TD.dtype()));
  CheckTokens(ctx, dtable_VD, token_T);
  CheckTensor(kOp, "dy", ctx, dy_TD, dy_TD.dtype(),
              {static_cast<int64_t>(token_T.size()), dtable_VD.dim(1)});
  SwitchFloat(kOp, dy_TD.dtype(),
              [&](auto t) { cpu::EmbeddingBackward<decltype(t)>(ctx, dy_TD, token_T, dtable_VD); });
}

}  // namespace hone::kernels
