#include "kernels/grouped_gemm/grouped_gemm.h"

#include <functional>

#include "kernels/dispatch.h"
#include "kernels/linear/linear_cpu.h"
#include "kernels/linear/linear_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

// `rows` may be sorted into the experts of `w_ENK` as `offset_E` says.
void CheckGroups(std::string_view op, const Context& ctx, const Tensor& rows, const Tensor& w_ENK,
                 int64_t cols, const std::vector<int64_t>& offset_E) {
  CheckTensor(op, "rows", ctx, rows, rows.dtype());
  CheckShape(w_ENK.ndim() == 3, "[{}] weights of shape {}, expected [experts, out, in]", op,
             runtime::ShapeToString(w_ENK.shape()));
  CheckShape(rows.ndim() == 2 && rows.dim(1) == cols, "[{}] rows of shape {}, expected [R, {}]", op,
             runtime::ShapeToString(rows.shape()), cols);
  int64_t experts = w_ENK.dim(0);
  CheckShape(static_cast<int64_t>(offset_E.size()) == experts + 1 && offset_E[0] == 0 &&
                 offset_E[experts] == rows.dim(0),
             "[{}] {} offsets for {} experts and {} rows; expected experts + 1, from 0 to the rows",
             op, offset_E.size(), experts, rows.dim(0));
  for (int64_t e = 0; e < experts; ++e) {
    CheckShape(offset_E[e] <= offset_E[e + 1], "[{}] offsets fall from {} to {} at expert {}", op,
               offset_E[e], offset_E[e + 1], e);
  }
}

Tensor Matrix(const Tensor& w_ENK, int64_t e) {
  return w_ENK.Slice(e, e + 1).Reshape({w_ENK.dim(1), w_ENK.dim(2)});
}

// Calls fn(expert, first row, end row) for each expert that has rows. On the CPU many experts are
// shared among the threads and few are done in turn, each with all threads; on CUDA they are put on
// the stream one after the other.
void ForEachGroup(Context& ctx, const std::vector<int64_t>& offset_E,
                  const std::function<void(int64_t, int64_t, int64_t)>& fn) {
  std::vector<int64_t> busy;
  for (size_t e = 0; e + 1 < offset_E.size(); ++e) {
    if (offset_E[e] < offset_E[e + 1]) busy.push_back(static_cast<int64_t>(e));
  }
  auto call = [&](int64_t i) { fn(busy[i], offset_E[busy[i]], offset_E[busy[i] + 1]); };
  int64_t count = static_cast<int64_t>(busy.size());
  if (!ctx.device().is_cpu() || count < 2 * ctx.pool().threads()) {
    for (int64_t i = 0; i < count; ++i) call(i);
  } else {
    ctx.pool().ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) call(i);
    });
  }
}

}  // namespace

Tensor GroupedLinear(Context& ctx, const Tensor& x_RK, const Tensor& w_ENK,
                     const std::vector<int64_t>& offset_E) {
  CheckGroups("grouped_linear", ctx, x_RK, w_ENK, w_ENK.dim(-1), offset_E);
  CheckTensor("grouped_linear", "w_ENK", ctx, w_ENK, x_RK.dtype());
  Tensor y_RN = ctx.Empty({x_RK.dim(0), w_ENK.dim(1)}, x_RK.dtype());
  SwitchFloat("grouped_linear", x_RK.dtype(), [&](auto t) {
    ForEachGroup(ctx, offset_E, [&](int64_t e, int64_t begin, int64_t end) {
      using T = decltype(t);
      Tensor x = x_RK.Slice(begin, end), w = Matrix(w_ENK, e), y = y_RN.Slice(begin, end);
      SwitchDevice(
          ctx, [&] { cpu::LinearEach<T>(ctx, x, {{w}}, {y}); },
          [&] { cuda::Linear<T>(ctx, x, w, nullptr, y); });
    });
  });
  return y_RN;
}

Tensor GroupedLinearInputGradient(Context& ctx, const Tensor& dy_RN, const Tensor& w_ENK,
                                  const std::vector<int64_t>& offset_E) {
  constexpr std::string_view kOp = "grouped_linear_input_gradient";
  CheckGroups(kOp, ctx, dy_RN, w_ENK, w_ENK.dim(1), offset_E);
  CheckTensor(kOp, "w_ENK", ctx, w_ENK, dy_RN.dtype());
  Tensor dx_RK = ctx.Empty({dy_RN.dim(0), w_ENK.dim(2)}, dy_RN.dtype());
  SwitchFloat(kOp, dy_RN.dtype(), [&](auto t) {
    ForEachGroup(ctx, offset_E, [&](int64_t e, int64_t begin, int64_t end) {
      using T = decltype(t);
      Tensor dy = dy_RN.Slice(begin, end), w = Matrix(w_ENK, e), dx = dx_RK.Slice(begin, end);
      SwitchDevice(
          ctx,
          [&] {
            cpu::LinearInputGradientSum<T>(ctx, {{dy, w}}, dx);
          },
          [&] { cuda::LinearInputGradient<T>(ctx, dy, w, dx); });
    });
  });
  return dx_RK;
}

void GroupedLinearWeightGradient(Context& ctx, const Tensor& dy_RN, const Tensor& x_RK,
                                 const Tensor& dw_ENK, const std::vector<int64_t>& offset_E) {
  constexpr std::string_view kOp = "grouped_linear_weight_gradient";
  CheckGroups(kOp, ctx, dy_RN, dw_ENK, dw_ENK.dim(1), offset_E);
  CheckTensor(kOp, "x_RK", ctx, x_RK, dy_RN.dtype(), {dy_RN.dim(0), dw_ENK.dim(2)});
  CheckTensor(kOp, "dw_ENK", ctx, dw_ENK, AccDType(dy_RN.dtype()));
  SwitchFloat(kOp, dy_RN.dtype(), [&](auto t) {
    ForEachGroup(ctx, offset_E, [&](int64_t e, int64_t begin, int64_t end) {
      using T = decltype(t);
      Tensor dy = dy_RN.Slice(begin, end), x = x_RK.Slice(begin, end), dw = Matrix(dw_ENK, e);
      SwitchDevice(
          ctx,
          [&] {
            cpu::LinearWeightGradientEach<T>(ctx, x, {{dy, dw}});
          },
          [&] { cuda::LinearWeightGradient<T>(ctx, dy, x, dw, nullptr); });
    });
  });
}

}  // namespace hone::kernels
