#include "kernels/elementwise/elementwise.h"

#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise_cpu.h"
#include "kernels/elementwise/elementwise_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {

void AddInPlace(Context& ctx, const Tensor& x, const Tensor& y) {
  CheckTensor("add_in_place", "x", ctx, x, x.dtype());
  CheckTensor("add_in_place", "y", ctx, y, y.dtype(), x.shape());
  SwitchFloat("add_in_place", x.dtype(), [&](auto t) {
    SwitchFloat("add_in_place", y.dtype(), [&](auto u) {
      using T = decltype(t);
      using U = decltype(u);
      SwitchDevice(
          ctx, [&] { cpu::AddInPlace<T, U>(ctx, x, y); },
          [&] { cuda::AddInPlace<T, U>(ctx, x, y); });
    });
  });
}

void ScaleInPlace(Context& ctx, const Tensor& x, double factor) {
  CheckTensor("scale_in_place", "x", ctx, x, x.dtype());
  SwitchFloat("scale_in_place", x.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::ScaleInPlace<T>(ctx, x, factor); },
        [&] { cuda::ScaleInPlace<T>(ctx, x, factor); });
  });
}

void MultiplyRowsInPlace(Context& ctx, const Tensor& x_TD, const Tensor& factor_T) {
  CheckTensor("multiply_rows_in_place", "x_TD", ctx, x_TD, x_TD.dtype());
  CheckTensor("multiply_rows_in_place", "factor_T", ctx, factor_T, factor_T.dtype(), {x_TD.rows()});
  SwitchFloat("multiply_rows_in_place", x_TD.dtype(), [&](auto t) {
    SwitchFloat("multiply_rows_in_place", factor_T.dtype(), [&](auto u) {
      using T = decltype(t);
      using U = decltype(u);
      SwitchDevice(
          ctx, [&] { cpu::MultiplyRowsInPlace<T, U>(ctx, x_TD, factor_T); },
          [&] { cuda::MultiplyRowsInPlace<T, U>(ctx, x_TD, factor_T); });
    });
  });
}

Tensor Add(Context& ctx, const Tensor& x, const Tensor& y) {
  CheckTensor("add", "x", ctx, x, x.dtype());
  CheckTensor("add", "y", ctx, y, x.dtype(), x.shape());
  Tensor sum = ctx.EmptyLike(x);
  SwitchFloat("add", x.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Add<T>(ctx, x, y, sum); }, [&] { cuda::Add<T>(ctx, x, y, sum); });
  });
  return sum;
}

Tensor Cast(Context& ctx, const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  CheckTensor("cast", "x", ctx, x, x.dtype());
  Tensor to = ctx.Empty(x.shape(), dtype);
  SwitchFloat("cast", dtype, [&](auto t) {
    SwitchFloat("cast", x.dtype(), [&](auto u) {
      using T = decltype(t);
      using U = decltype(u);
      SwitchDevice(
          ctx, [&] { cpu::Cast<T, U>(ctx, x, to); }, [&] { cuda::Cast<T, U>(ctx, x, to); });
    });
  });
  return to;
}

}  // namespace hone::kernels
