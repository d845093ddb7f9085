#include "kernels/token_logprob/head_rows.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/embedding/embedding.h"

namespace hone::kernels {

void CheckHeadInputs(std::string_view op, const Context& ctx, const Tensor& x_TD,
                     const Tensor& w_VD, std::span<const int32_t> target_T) {
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

int64_t LogitBlockRows(Device device, int64_t vocab) {
  const int64_t elements = int64_t{1} << (device.is_cpu() ? 20 : 27);
  return std::clamp<int64_t>(elements / std::max<int64_t>(1, vocab) / 64 * 64, 64, 1024);
}

namespace {
bool Consecutive(std::span<const int32_t> rows) {
  return rows.back() - rows.front() + 1 == static_cast<int64_t>(rows.size());
}
}  // namespace

Tensor GatherRows(Context& ctx, const Tensor& x_TD, std::span<const int32_t> row_B) {
  if (Consecutive(row_B)) return x_TD.Slice(row_B.front(), row_B.back() + 1);
  return Embedding(ctx, x_TD, row_B);
}

void ScatterRows(Context& ctx, const Tensor& rows_BD, std::span<const int32_t> row_B,
                 const Tensor& y_TD) {
  if (Consecutive(row_B)) {
    CopyTo(rows_BD, y_TD.Slice(row_B.front(), row_B.back() + 1), &ctx.stream());
    return;
  }
  SetRows(ctx, y_TD, row_B, rows_BD);
}

}  // namespace hone::kernels
