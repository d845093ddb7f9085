#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/cross_entropy/cross_entropy_cpu.h"
#include "kernels/linear/linear.h"
#include "kernels/token_logprob/head_inputs.h"
#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "cross_entropy";

}  // namespace

CrossEntropyResult CrossEntropy(Context& ctx, const Tensor& x_TD, const Tensor& w_VD,
                                std::span<const int32_t> target_T, std::span<const float> weight_T,
                                const Tensor* dw_VD) {
  CheckHeadInputs(kOp, ctx, x_TD, w_VD, target_T);
  CheckShape(weight_T.size() == target_T.size(), "[{}] {} weights for {} tokens", kOp,
             weight_T.size(), target_T.size());
  if (dw_VD) CheckTensor(kOp, "dw", ctx, *dw_VD, AccDType(x_TD.dtype()), w_VD.shape());
  int64_t tokens = x_TD.dim(0), block = LogitBlockRows(w_VD.dim(0));
  CrossEntropyResult result{ctx.Empty({tokens}, AccDType(x_TD.dtype())),
                            dw_VD ? ctx.EmptyLike(x_TD) : Tensor()};
  for (int64_t begin = 0; begin < tokens; begin += block) {
    int64_t end = std::min(begin + block, tokens);
    Tensor x_BD = x_TD.Slice(begin, end);
    Tensor logits_BV = Linear(ctx, x_BD, w_VD);
    SwitchFloat(kOp, x_TD.dtype(), [&](auto t) {
      cpu::CrossEntropyBlock<decltype(t)>(ctx, logits_BV, target_T.subspan(begin, end - begin),
                                          weight_T.subspan(begin, end - begin), dw_VD != nullptr,
                                          result.logp_T.Slice(begin, end));
    });
    if (!dw_VD) continue;
    CopyTo(LinearInputGradient(ctx, logits_BV, w_VD), result.dx_TD.Slice(begin, end));
    LinearWeightGradient(ctx, logits_BV, x_BD, *dw_VD);
  }
  return result;
}

}  // namespace hone::kernels
