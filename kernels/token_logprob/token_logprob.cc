#include "kernels/token_logprob/token_logprob.h"

#include <cmath>

#include "kernels/linear/linear.h"
#include "kernels/token_logprob/head_inputs.h"
#include "kernels/token_logprob/logit_row.h"
#include "kernels/token_logprob/token_logprob_cpu.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "token_logprob";

Tensor SliceIfDefined(const Tensor& t, int64_t begin, int64_t end) {
  return t.defined() ? t.Slice(begin, end) : t;
}

TokenLogprobResult SliceResult(const TokenLogprobResult& r, int64_t begin, int64_t end) {
  return {r.logp_T.Slice(begin, end), SliceIfDefined(r.entropy_T, begin, end),
          r.lse_T.Slice(begin, end)};
}

void CheckTemperature(double temperature) {
  CheckShape(temperature > 0 && std::isfinite(temperature),
             "[{}] temperature {} must be positive and finite", kOp, temperature);
}

}  // namespace

TokenLogprobResult TokenLogprob(Context& ctx, const Tensor& x_TD, const Tensor& w_VD,
                                std::span<const int32_t> target_T, double temperature,
                                bool with_entropy) {
  CheckHeadInputs(kOp, ctx, x_TD, w_VD, target_T);
  CheckTemperature(temperature);
  int64_t tokens = x_TD.dim(0), block = LogitBlockRows(w_VD.dim(0));
  DType dtype = AccDType(x_TD.dtype());
  TokenLogprobResult result{ctx.Empty({tokens}, dtype),
                            with_entropy ? ctx.Empty({tokens}, dtype) : Tensor(),
                            ctx.Empty({tokens}, dtype)};
  for (int64_t begin = 0; begin < tokens; begin += block) {
    int64_t end = std::min(begin + block, tokens);
    Tensor logits_BV = Linear(ctx, x_TD.Slice(begin, end), w_VD);
    SwitchFloat(kOp, x_TD.dtype(), [&](auto t) {
      cpu::LogprobBlock<decltype(t)>(ctx, logits_BV, target_T.subspan(begin, end - begin),
                                     temperature, SliceResult(result, begin, end));
    });
  }
  return result;
}

Tensor TokenLogprobBackward(Context& ctx, const Tensor& dlogp_T, const Tensor& dentropy_T,
                            const Tensor& x_TD, const Tensor& w_VD,
                            std::span<const int32_t> target_T, double temperature,
                            const TokenLogprobResult& saved, const Tensor& dw_VD) {
  CheckHeadInputs(kOp, ctx, x_TD, w_VD, target_T);
  CheckTemperature(temperature);
  DType dtype = AccDType(x_TD.dtype());
  int64_t tokens = x_TD.dim(0), block = LogitBlockRows(w_VD.dim(0));
  CheckTensor(kOp, "dlogp", ctx, dlogp_T, dtype, {tokens});
  CheckTensor(kOp, "saved lse", ctx, saved.lse_T, dtype, {tokens});
  CheckTensor(kOp, "dw", ctx, dw_VD, dtype, w_VD.shape());
  if (dentropy_T.defined()) {
    CheckTensor(kOp, "dentropy", ctx, dentropy_T, dtype, {tokens});
    CheckTensor(kOp, "saved entropy", ctx, saved.entropy_T, dtype, {tokens});
  }
  Tensor dx_TD = ctx.EmptyLike(x_TD);
  for (int64_t begin = 0; begin < tokens; begin += block) {
    int64_t end = std::min(begin + block, tokens);
    Tensor x_BD = x_TD.Slice(begin, end);
    Tensor dlogits_BV = Linear(ctx, x_BD, w_VD);
    SwitchFloat(kOp, x_TD.dtype(), [&](auto t) {
      cpu::LogprobGradientBlock<decltype(t)>(ctx, dlogits_BV, target_T.subspan(begin, end - begin),
                                             temperature, SliceResult(saved, begin, end),
                                             dlogp_T.Slice(begin, end),
                                             SliceIfDefined(dentropy_T, begin, end));
    });
    CopyTo(LinearInputGradient(ctx, dlogits_BV, w_VD), dx_TD.Slice(begin, end));
    LinearWeightGradient(ctx, dlogits_BV, x_BD, dw_VD);
  }
  return dx_TD;
}

}  // namespace hone::kernels
