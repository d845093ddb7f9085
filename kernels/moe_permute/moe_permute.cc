#include "kernels/moe_permute/moe_permute.h"

#include "kernels/dispatch.h"
#include "kernels/moe_permute/moe_permute_cpu.h"
#include "kernels/moe_permute/moe_permute_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "moe_permute";

int64_t RowCount(const Permutation& p) { return static_cast<int64_t>(p.token_R.size()); }

// T·K rows over K: what a permutation made for `top_k` experts a token must have.
void CheckTokens(const Permutation& p, int64_t tokens, int64_t top_k) {
  CheckShape(static_cast<int64_t>(p.row_TK.size()) == tokens * top_k,
             "[{}] the permutation has {} rows, but {} tokens with {} experts each need {}", kOp,
             p.row_TK.size(), tokens, top_k, tokens * top_k);
}

int64_t TokensOf(const Permutation& p, const Tensor& weight_TK) {
  if (weight_TK.defined()) return weight_TK.dim(0);
  int32_t last = -1;
  for (int32_t t : p.token_R) last = std::max(last, t);
  return last + 1;
}

}  // namespace

// A stable counting sort by expert. Taking tokens in order makes the rows of an expert ascend by
// token.
Permutation MakePermutation(std::span<const int32_t> index_TK, int64_t top_k, int64_t experts) {
  CheckShape(top_k > 0 && experts > 0, "[{}] top_k {} and experts {} must be positive", kOp, top_k,
             experts);
  CheckShape(static_cast<int64_t>(index_TK.size()) % top_k == 0,
             "[{}] {} expert indices are not a multiple of top_k = {}", kOp, index_TK.size(),
             top_k);
  Permutation p;
  p.offset_E.assign(experts + 1, 0);
  for (size_t i = 0; i < index_TK.size(); ++i) {
    CheckShape(index_TK[i] >= 0 && index_TK[i] < experts,
               "[{}] expert {} chosen by token {} is outside [0, {})", kOp, index_TK[i],
               i / static_cast<size_t>(top_k), experts);
    ++p.offset_E[index_TK[i] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) p.offset_E[e + 1] += p.offset_E[e];
  std::vector<int64_t> next(p.offset_E.begin(), p.offset_E.end() - 1);
  p.row_TK.resize(index_TK.size());
  p.token_R.resize(index_TK.size());
  for (size_t i = 0; i < index_TK.size(); ++i) {
    int64_t row = next[index_TK[i]]++;
    p.row_TK[i] = static_cast<int32_t>(row);
    p.token_R[row] = static_cast<int32_t>(i / static_cast<size_t>(top_k));
  }
  return p;
}

Tensor Permute(Context& ctx, const Tensor& x_TD, const Permutation& permutation) {
  CheckTensor(kOp, "x", ctx, x_TD, x_TD.dtype());
  CheckShape(x_TD.ndim() == 2, "[{}] x has shape {}, expected [tokens, dim]", kOp,
             runtime::ShapeToString(x_TD.shape()));
  int64_t rows = RowCount(permutation), tokens = x_TD.dim(0);
  CheckTokens(permutation, tokens, tokens == 0 ? 1 : rows / tokens);
  Tensor rows_RD = ctx.Empty({rows, x_TD.cols()}, x_TD.dtype());
  SwitchFloat(kOp, x_TD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Permute<T>(ctx, x_TD, permutation, rows_RD); },
        [&] { cuda::Permute<T>(ctx, x_TD, permutation, rows_RD); });
  });
  return rows_RD;
}

Tensor Unpermute(Context& ctx, const Tensor& rows_RD, const Tensor& weight_TK,
                 const Permutation& permutation) {
  CheckTensor(kOp, "rows", ctx, rows_RD, rows_RD.dtype());
  CheckShape(rows_RD.ndim() == 2 && rows_RD.dim(0) == RowCount(permutation),
             "[{}] rows has shape {}, but the permutation has {} rows", kOp,
             runtime::ShapeToString(rows_RD.shape()), RowCount(permutation));
  if (weight_TK.defined()) {
    CheckTensor(kOp, "weight", ctx, weight_TK, AccDType(rows_RD.dtype()));
    CheckShape(weight_TK.ndim() == 2, "[{}] weight has shape {}, expected [tokens, top_k]", kOp,
               runtime::ShapeToString(weight_TK.shape()));
    CheckTokens(permutation, weight_TK.dim(0), weight_TK.dim(1));
  }
  Tensor y_TD = ctx.Empty({TokensOf(permutation, weight_TK), rows_RD.cols()}, rows_RD.dtype());
  SwitchFloat(kOp, rows_RD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Unpermute<T>(ctx, rows_RD, weight_TK, permutation, y_TD); },
        [&] { cuda::Unpermute<T>(ctx, rows_RD, weight_TK, permutation, y_TD); });
  });
  return y_TD;
}

UnpermuteGradients UnpermuteBackward(Context& ctx, const Tensor& dy_TD, const Tensor& rows_RD,
                                     const Tensor& weight_TK, const Permutation& permutation) {
  CheckTensor(kOp, "rows", ctx, rows_RD, rows_RD.dtype());
  CheckShape(rows_RD.ndim() == 2 && rows_RD.dim(0) == RowCount(permutation),
             "[{}] rows has shape {}, but the permutation has {} rows", kOp,
             runtime::ShapeToString(rows_RD.shape()), RowCount(permutation));
  CheckTensor(kOp, "weight", ctx, weight_TK, AccDType(rows_RD.dtype()));
  CheckShape(weight_TK.ndim() == 2, "[{}] weight has shape {}, expected [tokens, top_k]", kOp,
             runtime::ShapeToString(weight_TK.shape()));
  CheckTokens(permutation, weight_TK.dim(0), weight_TK.dim(1));
  CheckTensor(kOp, "dy", ctx, dy_TD, rows_RD.dtype(), {weight_TK.dim(0), rows_RD.cols()});
  UnpermuteGradients gradients{ctx.EmptyLike(rows_RD), ctx.EmptyLike(weight_TK)};
  SwitchFloat(kOp, rows_RD.dtype(), [&](auto t) {
    using T = decltype(t);
    auto& p = permutation;
    SwitchDevice(
        ctx, [&] { cpu::UnpermuteBackward<T>(ctx, dy_TD, rows_RD, weight_TK, p, gradients); },
        [&] { cuda::UnpermuteBackward<T>(ctx, dy_TD, rows_RD, weight_TK, p, gradients); });
  });
  return gradients;
}

}  // namespace hone::kernels
