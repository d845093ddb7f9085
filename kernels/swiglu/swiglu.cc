#include "kernels/swiglu/swiglu.h"

#include "kernels/dispatch.h"
#include "kernels/swiglu/swiglu_cpu.h"
#include "kernels/swiglu/swiglu_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "swiglu";

void CheckInputs(const Context& ctx, const Tensor& gate_TF, const Tensor& up_TF) {
  CheckTensor(kOp, "gate", ctx, gate_TF, gate_TF.dtype());
  CheckTensor(kOp, "up", ctx, up_TF, gate_TF.dtype(), gate_TF.shape());
}

}  // namespace

Tensor SwiGlu(Context& ctx, const Tensor& gate_TF, const Tensor& up_TF) {
  CheckInputs(ctx, gate_TF, up_TF);
  Tensor h_TF = ctx.EmptyLike(gate_TF);
  SwitchFloat(kOp, gate_TF.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::SwiGlu<T>(ctx, gate_TF, up_TF, h_TF); },
        [&] { cuda::SwiGlu<T>(ctx, gate_TF, up_TF, h_TF); });
  });
  return h_TF;
}

void SwiGluBackward(Context& ctx, const Tensor& dh_TF, const Tensor& gate_TF, const Tensor& up_TF) {
  CheckInputs(ctx, gate_TF, up_TF);
  CheckTensor(kOp, "dh", ctx, dh_TF, gate_TF.dtype(), gate_TF.shape());
  SwitchFloat(kOp, gate_TF.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::SwiGluBackward<T>(ctx, dh_TF, gate_TF, up_TF); },
        [&] { cuda::SwiGluBackward<T>(ctx, dh_TF, gate_TF, up_TF); });
  });
}

}  // namespace hone::kernels
