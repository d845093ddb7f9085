#include "kernels/sampling/likeliest.h"

#include <algorithm>
#include <numeric>

#include "kernels/dispatch.h"
#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels {
namespace {

template <class T>
std::vector<SampledToken> LikeliestOf(const T* logits, int64_t vocab, double temperature,
                                      int64_t count) {
  std::vector<Acc<T>> z(static_cast<size_t>(vocab));
  LoadLogits(logits, temperature == 0 ? 1.0 : temperature, z.data(), vocab);
  const RowSoftmax<Acc<T>> row = SoftmaxOf(z.data(), vocab);
  std::vector<int32_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  auto end = order.begin() + std::min(count, vocab);
  std::partial_sort(order.begin(), end, order.end(),
                    [&](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; });
  std::vector<SampledToken> tokens;
  for (auto it = order.begin(); it != end; ++it) {
    tokens.push_back({*it, static_cast<float>(row.Logp(z[*it]))});
  }
  return tokens;
}

}  // namespace

std::vector<SampledToken> Likeliest(const Tensor& logits_1V, double temperature, int64_t count) {
  constexpr std::string_view kOp = "likeliest";
  CheckShape(logits_1V.ndim() == 2 && logits_1V.rows() == 1 && logits_1V.cols() > 0,
             "[{}] logits have shape {}, expected [1, vocabulary]", kOp,
             runtime::ShapeToString(logits_1V.shape()));
  CheckShape(count >= 0 && temperature >= 0, "[{}] {} tokens at temperature {}", kOp, count,
             temperature);
  Tensor row = logits_1V;
  if (!row.device().is_cpu()) {
    row = Context().Empty(logits_1V.shape(), logits_1V.dtype());
    runtime::CopyTo(logits_1V, row);
  }
  return SwitchFloat(kOp, row.dtype(), [&](auto t) {
    using T = decltype(t);
    return LikeliestOf(row.data<T>(), row.cols(), temperature, count);
  });
}

}  // namespace hone::kernels
