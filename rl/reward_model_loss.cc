#include "rl/reward_model_loss.h"

#include <cmath>

#include "kernels/elementwise/elementwise.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

double Sigmoid(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}
// −log σ(x), also where σ(x) is 0 in double.
double MinusLogSigmoid(double x) { return std::max(-x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

bool IsRejected(const TokenBatch& batch, int64_t sequence) {
  return batch.sample_S[static_cast<size_t>(sequence)] % 2 == 1;
}

}  // namespace

parallel::LossFunction::Result RewardModelLoss::Evaluate(Context& ctx, const TokenBatch& batch,
                                                         const parallel::HeadOutput& out) const {
  CheckShape(static_cast<int64_t>(batch.sample_S.size()) == batch.sequences(),
             "[reward_model_loss] sample_S has {} entries for {} sequences", batch.sample_S.size(),
             batch.sequences());
  const std::vector<double> value = runtime::ToDoubles(out.value_T);
  std::vector<double> dvalue(value.size(), 0.0);
  Result result;
  // Item by item: `last` is where its weight stands, `margin` what should be large.
  auto add = [&](int64_t last, double margin) {
    double weight = batch.loss_weight_T[static_cast<size_t>(last)];
    result.loss += weight * MinusLogSigmoid(margin);
    result.metrics["accuracy"] += weight * (margin > 0);
    result.metrics["margin"] += weight * margin;
    return -weight * Sigmoid(-margin);  // its derivative with respect to the margin
  };
  bool pairwise = mode_ == PreferenceMode::kPairwise;
  for (int64_t s = 0; s < batch.sequences(); s += pairwise ? 2 : 1) {
    int64_t last = batch.cu_seqlens[s + 1] - 1;
    if (!pairwise) {
      double sign = IsRejected(batch, s) ? -1 : 1;
      dvalue[last] = sign * add(last, sign * value[last]);
      continue;
    }
    CheckShape(s + 1 < batch.sequences() && batch.sample_S[s] % 2 == 0 &&
                   batch.sample_S[s + 1] == batch.sample_S[s] + 1,
               "[reward_model_loss] sequence {} is no chosen one followed by its rejected one", s);
    int64_t rejected = batch.cu_seqlens[s + 2] - 1;
    dvalue[last] = add(last, value[last] - value[rejected]);
    dvalue[rejected] = -dvalue[last];
  }
  Tensor host(dvalue.data(), {static_cast<int64_t>(dvalue.size())}, DType::kF64, Device::Cpu());
  result.gradient.dvalue_T = kernels::Cast(ctx, ctx.Clone(host), out.value_T.dtype());
  return result;
}

}  // namespace hone::rl
