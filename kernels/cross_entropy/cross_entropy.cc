#include "kernels/cross_entropy/cross_entropy.h"

#include <functional>
#include <vector>

#include "kernels/cross_entropy/cross_entropy_cpu.h"
#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "kernels/dispatch.h"
#include "kernels/linear/linear.h"
#include "kernels/switch_device.h"
#include "kernels/token_logprob/head_rows.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "cross_entropy";

void SoftmaxBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                  std::span<const int32_t> target_T, std::span<const float> weight_T, bool gradient,
                  const Tensor& logp_T) {
  SwitchFloat(kOp, logits_BV.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx,
        [&] {
          cpu::CrossEntropyBlock<T>(ctx, logits_BV, row_B, target_T, weight_T, gradient, logp_T);
        },
        [&] {
          cuda::CrossEntropyBlock<T>(ctx, logits_BV, row_B, target_T, weight_T, gradient, logp_T);
        });
  });
}

}  // namespace

CrossEntropyResult CrossEntropy(Context& ctx, const Tensor& x_TD, const Tensor& w_VD,
                                std::span<const int32_t> target_T, std::span<const float> weight_T,
                                const Tensor* dw_VD) {
  CheckHeadInputs(kOp, ctx, x_TD, w_VD, target_T);
  CheckShape(weight_T.size() == target_T.size(), "[{}] {} weights for {} tokens", kOp,
             weight_T.size(), target_T.size());
  if (dw_VD) CheckTensor(kOp, "dw", ctx, *dw_VD, AccDType(x_TD.dtype()), w_VD.shape());
  CrossEntropyResult result{ctx.Zeros({x_TD.dim(0)}, AccDType(x_TD.dtype())),
                            dw_VD ? ctx.ZerosLike(x_TD) : Tensor()};
  std::vector<int32_t> trained = RowsWithTarget(target_T), others = trained;
  auto has_gradient = [&](int32_t t) { return dw_VD && weight_T[t] != 0.0f; };
  std::erase_if(trained, std::not_fn(has_gradient));
  std::erase_if(others, has_gradient);
  ForRowBlocks(ctx, others, w_VD.dim(0), [&](std::span<const int32_t> row_B) {
    Tensor logits_BV = Linear(ctx, GatherRows(ctx, x_TD, row_B), w_VD);
    SoftmaxBlock(ctx, logits_BV, row_B, target_T, weight_T, false, result.logp_T);
  });
  ForRowBlocks(ctx, trained, w_VD.dim(0), [&](std::span<const int32_t> row_B) {
    Tensor x_BD = GatherRows(ctx, x_TD, row_B);
    Tensor logits_BV = Linear(ctx, x_BD, w_VD);
    SoftmaxBlock(ctx, logits_BV, row_B, target_T, weight_T, true, result.logp_T);
    ScatterRows(ctx, LinearInputGradient(ctx, logits_BV, w_VD), row_B, result.dx_TD);
    LinearWeightGradient(ctx, logits_BV, x_BD, *dw_VD);
  });
  return result;
}

}  // namespace hone::kernels
