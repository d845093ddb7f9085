#include "kernels/norm/rms_norm.h"

#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/norm/rms_norm_cpu.h"
#include "kernels/norm/rms_norm_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "rms_norm";

void CheckInputs(const Context& ctx, const Tensor& x_RD, const Tensor& w_D) {
  CheckTensor(kOp, "x", ctx, x_RD, x_RD.dtype());
  CheckShape(x_RD.ndim() >= 1, "[{}] x has no dims; the last one is normalised", kOp);
  CheckTensor(kOp, "w", ctx, w_D, x_RD.dtype(), {x_RD.cols()});
}

void CheckMore(const Context& ctx, const Tensor& more_RD, const Tensor& x_RD) {
  CheckTensor(kOp, "more", ctx, more_RD, x_RD.dtype(), x_RD.shape());
}

Tensor NormOf(Context& ctx, const Tensor& x_RD, const Tensor* more_RD, const Tensor& w_D,
              double eps) {
  CheckInputs(ctx, x_RD, w_D);
  if (more_RD) CheckMore(ctx, *more_RD, x_RD);
  Tensor y_RD = ctx.EmptyLike(x_RD);
  SwitchFloat(kOp, x_RD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::RmsNorm<T>(ctx, x_RD, more_RD, w_D, eps, y_RD); },
        [&] {
          if (more_RD) AddInPlace(ctx, x_RD, *more_RD);
          cuda::RmsNorm<T>(ctx, x_RD, w_D, eps, y_RD);
        });
  });
  return y_RD;
}

}  // namespace

Tensor RmsNorm(Context& ctx, const Tensor& x_RD, const Tensor& w_D, double eps) {
  return NormOf(ctx, x_RD, nullptr, w_D, eps);
}

Tensor RmsNormOfSum(Context& ctx, const Tensor& x_RD, const Tensor& more_RD, const Tensor& w_D,
                    double eps) {
  return NormOf(ctx, x_RD, &more_RD, w_D, eps);
}

Tensor RmsNormBackward(Context& ctx, const Tensor& dy_RD, const Tensor& x_RD, const Tensor& w_D,
                       const Tensor& dw_D, double eps, const Tensor* more_RD) {
  CheckInputs(ctx, x_RD, w_D);
  if (more_RD) CheckMore(ctx, *more_RD, x_RD);
  CheckTensor(kOp, "dy", ctx, dy_RD, x_RD.dtype(), x_RD.shape());
  CheckTensor(kOp, "dw", ctx, dw_D, AccDType(x_RD.dtype()), w_D.shape());
  Tensor dx_RD = ctx.EmptyLike(x_RD);
  SwitchFloat(kOp, x_RD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::RmsNormBackward<T>(ctx, dy_RD, x_RD, w_D, dw_D, eps, more_RD, dx_RD); },
        [&] {
          cuda::RmsNormBackward<T>(ctx, dy_RD, x_RD, w_D, dw_D, eps, dx_RD);
          if (more_RD) AddInPlace(ctx, dx_RD, *more_RD);
        });
  });
  return dx_RD;
}

}  // namespace hone::kernels
