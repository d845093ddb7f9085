#include "kernels/linear/linear.h"

#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
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

std::vector<Tensor> LinearEach(Context& ctx, const Tensor& x_TK,
                               const std::vector<LinearWeight>& layers) {
  std::vector<Tensor> y_TN;
  for (const auto& [w_NK, bias_N] : layers) {
    CheckMatrix("linear", "w_NK", ctx, w_NK, x_TK.dtype(), -1, -1);
    CheckMatrix("linear", "x_TK", ctx, x_TK, x_TK.dtype(), -1, w_NK.dim(1));
    if (bias_N) CheckTensor("linear", "bias_N", ctx, *bias_N, x_TK.dtype(), {w_NK.dim(0)});
    y_TN.push_back(ctx.Empty({x_TK.dim(0), w_NK.dim(0)}, x_TK.dtype()));
  }
  SwitchFloat("linear", x_TK.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::LinearEach<T>(ctx, x_TK, layers, y_TN); },
        [&] {
          for (size_t i = 0; i < layers.size(); ++i) {
            cuda::Linear<T>(ctx, x_TK, layers[i].w_NK, layers[i].bias_N, y_TN[i]);
          }
        });
  });
  return y_TN;
}

Tensor LinearInputGradientSum(Context& ctx, const std::vector<LinearOutput>& layers) {
  constexpr std::string_view kOp = "linear_input_gradient";
  CheckShape(!layers.empty(), "[{}] of no layer", kOp);
  const Tensor& first_TN = layers[0].dy_TN;
  for (const auto& [dy_TN, w_NK] : layers) {
    CheckMatrix(kOp, "w_NK", ctx, w_NK, first_TN.dtype(), -1, layers[0].w_NK.dim(-1));
    CheckMatrix(kOp, "dy_TN", ctx, dy_TN, first_TN.dtype(), first_TN.dim(0), w_NK.dim(0));
  }
  Tensor dx_TK = ctx.Empty({first_TN.dim(0), layers[0].w_NK.dim(1)}, first_TN.dtype());
  auto one_by_one = [&](auto make) {
    make(layers[0], dx_TK);
    for (size_t i = 1; i < layers.size(); ++i) {
      Tensor other_TK = ctx.EmptyLike(dx_TK);
      make(layers[i], other_TK);
      AddInPlace(ctx, dx_TK, other_TK);
    }
  };
  SwitchFloat(kOp, dx_TK.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx,
        [&] {
          if (ctx.numerics != Numerics::kBatchInvariant) {
            return cpu::LinearInputGradientSum<T>(ctx, layers, dx_TK);
          }
          one_by_one([&](const LinearOutput& layer, const Tensor& to_TK) {
            cpu::LinearInputGradientSum<T>(ctx, {layer}, to_TK);
          });
        },
        [&] {
          one_by_one([&](const LinearOutput& layer, const Tensor& to_TK) {
            cuda::LinearInputGradient<T>(ctx, layer.dy_TN, layer.w_NK, to_TK);
          });
        });
  });
  return dx_TK;
}

void LinearWeightGradientEach(Context& ctx, const Tensor& x_TK,
                              const std::vector<LinearGradient>& layers) {
  constexpr std::string_view kOp = "linear_weight_gradient";
  const DType acc = AccDType(x_TK.dtype());
  for (const auto& [dy_TN, dw_NK, dbias_N] : layers) {
    CheckMatrix(kOp, "dy_TN", ctx, dy_TN, x_TK.dtype(), -1, -1);
    CheckMatrix(kOp, "x_TK", ctx, x_TK, x_TK.dtype(), dy_TN.dim(0), -1);
    CheckMatrix(kOp, "dw_NK", ctx, dw_NK, acc, dy_TN.dim(1), x_TK.dim(1));
    if (dbias_N) CheckTensor(kOp, "dbias_N", ctx, *dbias_N, acc, {dy_TN.dim(1)});
  }
  SwitchFloat(kOp, x_TK.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::LinearWeightGradientEach<T>(ctx, x_TK, layers); },
        [&] {
          for (const auto& [dy_TN, dw_NK, dbias_N] : layers) {
            cuda::LinearWeightGradient<T>(ctx, dy_TN, x_TK, dw_NK, dbias_N);
          }
        });
  });
}

Tensor Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK, const Tensor* bias_N) {
  return LinearEach(ctx, x_TK, {{w_NK, bias_N}})[0];
}

Tensor LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK) {
  return LinearInputGradientSum(ctx, {{dy_TN, w_NK}});
}

void LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                          const Tensor& dw_NK, const Tensor* dbias_N) {
  LinearWeightGradientEach(ctx, x_TK, {{dy_TN, dw_NK, dbias_N}});
}

}  // namespace hone::kernels
