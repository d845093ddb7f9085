#include "kernels/norm/rms_norm.h"

#include "kernels/dispatch.h"
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

}  // namespace

Tensor RmsNorm(Context& ctx, const Tensor& x_RD, const Tensor& w_D, double eps) {
  CheckInputs(ctx, x_RD, w_D);
  Tensor y_RD = ctx.EmptyLike(x_RD);
  SwitchFloat(kOp, x_RD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::RmsNorm<T>(ctx, x_RD, w_D, eps, y_RD); },
        [&] { cuda::RmsNorm<T>(ctx, x_RD, w_D, eps, y_RD); });
  });
  return y_RD;
}

Tensor RmsNormBackward(Context& ctx, const Tensor& dy_RD, const Tensor& x_RD, const Tensor& w_D,
                       const Tensor& dw_D, double eps) {
  CheckInputs(ctx, x_RD, w_D);
  CheckTensor(kOp, "dy", ctx, dy_RD, x_RD.dtype(), x_RD.shape());
  CheckTensor(kOp, "dw", ctx, dw_D, AccDType(x_RD.dtype()), w_D.shape());
  Tensor dx_RD = ctx.EmptyLike(x_RD);
  SwitchFloat(kOp, x_RD.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::RmsNormBackward<T>(ctx, dy_RD, x_RD, w_D, dw_D, eps, dx_RD); },
        [&] { cuda::RmsNormBackward<T>(ctx, dy_RD, x_RD, w_D, dw_D, eps, dx_RD); });
  });
  return dx_RD;
}

}  // namespace hone::kernels
