#include "kernels/sampling/sampling.h"

#include "kernels/dispatch.h"
#include "kernels/sampling/sampling_cpu.h"
#include "kernels/sampling/sampling_cuda.h"
#include "kernels/switch_device.h"
#include "kernels/token_logprob/token_logprob.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "sampling";

void CheckRow(const SamplingParams& p, double uniform, size_t row) {
  CheckShape(p.temperature == 0 ||
                 (p.temperature >= kLeastTemperature && p.temperature <= kGreatestTemperature),
             "[{}] temperature {} of row {} must be 0 (greedy) or lie in [{}, {}]", kOp,
             p.temperature, row, kLeastTemperature, kGreatestTemperature);
  CheckShape(p.top_p > 0 && p.top_p <= 1, "[{}] top_p {} of row {} must lie in (0, 1]", kOp,
             p.top_p, row);
  CheckShape(p.top_k >= 0, "[{}] top_k {} of row {} must be 0 (all) or positive", kOp, p.top_k,
             row);
  CheckShape(uniform >= 0 && uniform < 1, "[{}] uniform draw {} of row {} must lie in [0, 1)", kOp,
             uniform, row);
}

}  // namespace

std::vector<SampledToken> Sample(Context& ctx, const Tensor& logits_BV,
                                 std::span<const SamplingParams> params_B,
                                 std::span<const double> uniform_B) {
  CheckTensor(kOp, "logits", ctx, logits_BV, logits_BV.dtype());
  CheckShape(logits_BV.ndim() == 2 && logits_BV.cols() > 0,
             "[{}] logits have shape {}, expected [rows, vocabulary]", kOp,
             runtime::ShapeToString(logits_BV.shape()));
  CheckShape(static_cast<int64_t>(params_B.size()) == logits_BV.rows() &&
                 params_B.size() == uniform_B.size(),
             "[{}] {} parameters and {} draws for {} rows", kOp, params_B.size(), uniform_B.size(),
             logits_BV.rows());
  for (size_t b = 0; b < params_B.size(); ++b) CheckRow(params_B[b], uniform_B[b], b);
  std::vector<SampledToken> out(params_B.size());
  SwitchFloat(kOp, logits_BV.dtype(), [&](auto t) {
    using T = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Sample<T>(ctx, logits_BV, params_B, uniform_B, out); },
        [&] { cuda::Sample<T>(ctx, logits_BV, params_B, uniform_B, out); });
  });
  return out;
}

}  // namespace hone::kernels
