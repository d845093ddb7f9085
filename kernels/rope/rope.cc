#include "kernels/rope/rope.h"

#include "kernels/dispatch.h"
#include "kernels/rope/rope_cpu.h"
#include "kernels/rope/rope_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "rope";

void CheckTable(const Context& ctx, const RopeTable& table, int64_t dim, DType dtype) {
  CheckTensor(kOp, "cos", ctx, table.cos_PR, dtype);
  CheckShape(table.cos_PR.ndim() == 2 && 2 * table.cos_PR.cols() == dim,
             "[{}] the table has {} pairs, but heads of dim {} have {}", kOp, table.cos_PR.cols(),
             dim, dim / 2.0);
  CheckTensor(kOp, "sin", ctx, table.sin_PR, dtype, table.cos_PR.shape());
}

}  // namespace

void Rope(Context& ctx, const Tensor& x_THR, std::span<const int32_t> position_T,
          const RopeTable& table, RopeForm form, bool inverse) {
  CheckTensor(kOp, "x", ctx, x_THR, x_THR.dtype());
  CheckShape(x_THR.ndim() >= 2, "[{}] x has shape {}, expected [tokens, heads, dim]", kOp,
             runtime::ShapeToString(x_THR.shape()));
  CheckShape(static_cast<int64_t>(position_T.size()) == x_THR.dim(0),
             "[{}] {} positions for {} tokens", kOp, position_T.size(), x_THR.dim(0));
  CheckTable(ctx, table, x_THR.cols(), AccDType(x_THR.dtype()));
  for (size_t t = 0; t < position_T.size(); ++t) {
    CheckShape(position_T[t] >= 0 && position_T[t] < table.cos_PR.rows(),
               "[{}] position {} of token {} is outside the table's [0, {})", kOp, position_T[t], t,
               table.cos_PR.rows());
  }
  SwitchFloat(kOp, x_THR.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Rope<T>(ctx, x_THR, position_T, table, form, inverse); },
        [&] { cuda::Rope<T>(ctx, x_THR, position_T, table, form, inverse); });
  });
}

}  // namespace hone::kernels
