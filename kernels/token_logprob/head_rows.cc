#include "kernels/token_logprob/head_rows.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/embedding/embedding.h"

namespace hone::kernels {

void CheckHeadInputs(std::string_view op, const Context& ctx, const Tensor& x_TD,
                     const Tensor& w_VD, std::span<const int32_t> target_T) {
  RequireCpu(op, ctx);
  CheckTensor(op, "x", ctx, x_TD, x_TD.dtype());
  CheckTensor(op, "w", ctx, w_VD, x_TD.dtype());
  CheckShape(x_TD.ndim() == 2 && w_VD.ndim() == 2 && x_TD.dim(1) == w_VD.dim(1),
             "[{}] x of shape {} and w of shape {} do not fit [tokens, dim] and [vocabulary, dim]",
             op, runtime::ShapeToString(x_TD.shape()), runtime::ShapeToString(w_VD.shape()));
  CheckShape(w_VD.dim(0) > 0, "[{}] the vocabulary is empty", op);
  CheckShape(static_cast<int64_t>(target_T.size()) == x_TD.dim(0), "[{}] {} targets for {} tokens",
             op, target_T.size(), x_TD.dim(0));
  for (size_t t = 0; t < target_T.size(); ++t) {
    CheckShape(!HasTarget(target_T[t]) || (target_T[t] >= 0 && target_T[t] < w_VD.dim(0)),
               "[{}] target {} of token {} is outside the vocabulary [0, {})", op, target_T[t], t,
               w_VD.dim(0));
  }
}

std::vector<int32_t> RowsWithTarget(std::span<const int32_t> target_T) {
  std::vector<int32_t> rows;
  rows.reserve(target_T.size());
  for (size_t t = 0; t < target_T.size(); ++t) {
    if (HasTarget(target_T[t])) rows.push_back(static_cast<int32_t>(t));
  }
  return rows;
}

int64_t LogitBlockRows(int64_t vocab) {
  constexpr int64_t kElements = int64_t{1} << 20;
  return std::clamp<int64_t>(kElements / std::max<int64_t>(1, vocab) / 64 * 64, 64, 256);
}

Tensor GatherRows(Context& ctx, const Tensor& x_TD, std::span<const int32_t> row_B) {
  int64_t first = row_B.front(), count = static_cast<int64_t>(row_B.size());
  if (row_B.back() - first + 1 == count) return x_TD.Slice(first, first + count);
  return Embedding(ctx, x_TD, row_B);
}

void ScatterRows(const Tensor& rows_BD, std::span<const int32_t> row_B, const Tensor& y_TD) {
  for (size_t b = 0; b < row_B.size(); ++b) {
    int64_t from = static_cast<int64_t>(b), to = row_B[b];
    CopyTo(rows_BD.Slice(from, from + 1), y_TD.Slice(to, to + 1));
  }
}

}  // namespace hone::kernels
