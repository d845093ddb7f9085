#include "kernels/linear/linear.h"

#include "kernels/dispatch.h"
#include "kernels/linear/linear_cpu.h"
#include "kernels/linear/linear_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

// A matrix of `cols` columns (any number when negative), on the context's device.
void CheckMatrix(std::string_view op, std::string_view name, const Context& ctx, const Tensor& t,
                 DType dtype, int64_t rows, int64_t cols) {
  CheckTensor(op, name, ctx, t, dtype);
  if (t.ndim() != 2 || (rows >= 0 && t.dim(0) != rows) || (cols >= 0 && t.dim(1) != cols)) {
    throw ShapeError(fmt::format("[{}] {} has shape {}, expected [{}, {}] (-1: any)", op, name,
                                 runtime::ShapeToString(t.shape()), rows, cols));
  }
}

}  // namespace

Tensor Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK, const Tensor* bias_N) {
  CheckMatrix("linear", "w_NK", ctx, w_NK, x_TK.dtype(), -1, -1);
  CheckMatrix("linear", "x_TK", ctx, x_TK, x_TK.dtype(), -1, w_NK.dim(1));
  if (bias_N) CheckTensor("linear", "bias_N", ctx, *bias_N, x_TK.dtype(), {w_NK.dim(0)});
  Tensor y_TN = ctx.Empty({x_TK.dim(0), w_NK.dim(0)}, x_TK.dtype());
  SwitchFloat("linear", x_TK.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Linear<T>(ctx, x_TK, w_NK, bias_N, y_TN); },
        [&] { cuda::Linear<T>(ctx, x_TK, w_NK, bias_N, y_TN); });
  });
  return y_TN;
}

Tensor LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK) {
  CheckMatrix("linear_input_gradient", "w_NK", ctx, w_NK, dy_TN.dtype(), -1, -1);
  CheckMatrix("linear_input_gradient", "dy_TN", ctx, dy_TN, dy_TN.dtype(), -1, w_NK.dim(0));
  Tensor dx_TK = ctx.Empty({dy_TN.dim(0), w_NK.dim(1)}, dy_TN.dtype());
  SwitchFloat("linear_input_gradient", dy_TN.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::LinearInputGradient<T>(ctx, dy_TN, w_NK, dx_TK); },
        [&] { cuda::LinearInputGradient<T>(ctx, dy_TN, w_NK, dx_TK); });
  });
  return dx_TK;
}

void LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                          const Tensor& dw_NK, const Tensor* dbias_N) {
  constexpr std::string_view kOp = "linear_weight_gradient";
  DType acc = AccDType(dy_TN.dtype());
  CheckMatrix(kOp, "dy_TN", ctx, dy_TN, dy_TN.dtype(), -1, -1);
  CheckMatrix(kOp, "x_TK", ctx, x_TK, dy_TN.dtype(), dy_TN.dim(0), -1);
  CheckMatrix(kOp, "dw_NK", ctx, dw_NK, acc, dy_TN.dim(1), x_TK.dim(1));
  if (dbias_N) CheckTensor(kOp, "dbias_N", ctx, *dbias_N, acc, {dy_TN.dim(1)});
  SwitchFloat(kOp, dy_TN.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::LinearWeightGradient<T>(ctx, dy_TN, x_TK, dw_NK, dbias_N); },
        [&] { cuda::LinearWeightGradient<T>(ctx, dy_TN, x_TK, dw_NK, dbias_N); });
  });
}

}  // namespace hone::kernels
