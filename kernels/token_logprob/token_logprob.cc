#include "kernels/token_logprob/token_logprob.h"

#include "kernels/dispatch.h"
#include "kernels/linear/linear.h"
#include "kernels/switch_device.h"
#include "kernels/token_logprob/head_rows.h"
#include "kernels/token_logprob/token_logprob_cpu.h"
#include "kernels/token_logprob/token_logprob_cuda.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "token_logprob";

void CheckTemperature(double temperature) {
  CheckShape(temperature >= kLeastTemperature && temperature <= kGreatestTemperature,
             "[{}] temperature {} must lie in [{}, {}]", kOp, temperature, kLeastTemperature,
             kGreatestTemperature);
}

// Tokens that have a target and a gradient that is not zero.
template <class A>
std::vector<int32_t> RowsWithGradient(std::span<const int32_t> target_T, const Tensor& dlogp_T,
                                      const Tensor& dentropy_T) {
  std::vector<int32_t> rows = RowsWithTarget(target_T);
  std::vector<A> dlogp = runtime::ToVector<A>(dlogp_T), dentropy;
  if (dentropy_T.defined()) dentropy = runtime::ToVector<A>(dentropy_T);
  std::erase_if(rows, [&](int32_t t) {
    return dlogp[t] == A(0) && (dentropy.empty() || dentropy[t] == A(0));
  });
  return rows;
}

}  // namespace

TokenLogprobResult TokenLogprob(Context& ctx, const Tensor& x_TD, const Tensor& w_VD,
                                std::span<const int32_t> target_T, double temperature,
                                bool with_entropy) {
  CheckHeadInputs(kOp, ctx, x_TD, w_VD, target_T);
  CheckTemperature(temperature);
  int64_t tokens = x_TD.dim(0);
  DType dtype = AccDType(x_TD.dtype());
  TokenLogprobResult result{ctx.Zeros({tokens}, dtype),
                            with_entropy ? ctx.Zeros({tokens}, dtype) : Tensor(),
                            ctx.Zeros({tokens}, dtype)};
  std::vector<int32_t> rows = RowsWithTarget(target_T);
  ForRowBlocks(ctx, rows, w_VD.dim(0), [&](std::span<const int32_t> row_B) {
    Tensor logits_BV = Linear(ctx, GatherRows(ctx, x_TD, row_B), w_VD);
    SwitchFloat(kOp, x_TD.dtype(), [&](auto t) {
      using T = decltype(t);
      SwitchDevice(
          ctx, [&] { cpu::LogprobBlock<T>(ctx, logits_BV, row_B, target_T, temperature, result); },
          [&] { cuda::LogprobBlock<T>(ctx, logits_BV, row_B, target_T, temperature, result); });
    });
  });
  return result;
}

Tensor TokenLogprobBackward(Context& ctx, const Tensor& dlogp_T, const Tensor& dentropy_T,
                            const Tensor& x_TD, const Tensor& w_VD,
                            std::span<const int32_t> target_T, double temperature,
                            const TokenLogprobResult& saved, const Tensor& dw_VD) {
  CheckHeadInputs(kOp, ctx, x_TD, w_VD, target_T);
  CheckTemperature(temperature);
  DType dtype = AccDType(x_TD.dtype());
  int64_t tokens = x_TD.dim(0);
  CheckTensor(kOp, "dlogp", ctx, dlogp_T, dtype, {tokens});
  CheckTensor(kOp, "saved lse", ctx, saved.lse_T, dtype, {tokens});
  CheckTensor(kOp, "dw", ctx, dw_VD, dtype, w_VD.shape());
  if (dentropy_T.defined()) {
    CheckTensor(kOp, "dentropy", ctx, dentropy_T, dtype, {tokens});
    CheckTensor(kOp, "saved entropy", ctx, saved.entropy_T, dtype, {tokens});
  }
  Tensor dx_TD = ctx.ZerosLike(x_TD);
  SwitchFloat(kOp, x_TD.dtype(), [&](auto t) {
    using T = decltype(t);
    std::vector<int32_t> rows = RowsWithGradient<Acc<T>>(target_T, dlogp_T, dentropy_T);
    ForRowBlocks(ctx, rows, w_VD.dim(0), [&](std::span<const int32_t> row_B) {
      Tensor x_BD = GatherRows(ctx, x_TD, row_B);
      Tensor dlogits_BV = Linear(ctx, x_BD, w_VD);
      SwitchDevice(
          ctx,
          [&] {
            cpu::LogprobGradientBlock<T>(ctx, dlogits_BV, row_B, target_T, temperature, saved,
                                         dlogp_T, dentropy_T);
          },
          [&] {
            cuda::LogprobGradientBlock<T>(ctx, dlogits_BV, row_B, target_T, temperature, saved,
                                          dlogp_T, dentropy_T);
          });
      ScatterRows(ctx, LinearInputGradient(ctx, dlogits_BV, w_VD), row_B, dx_TD);
      LinearWeightGradient(ctx, dlogits_BV, x_BD, dw_VD);
    });
  });
  return dx_TD;
}

}  // namespace hone::kernels
