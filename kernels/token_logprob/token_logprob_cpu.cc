#include "kernels/token_logprob/token_logprob_cpu.h"

#include <algorithm>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels::cpu {
namespace {

// With p = softmax(z), z = logits / temperature and H the entropy:
//   d logp / dz_v = [v = target] − p_v,   dH / dz_v = −p_v (log p_v + H)
template <class A>
void GradientRow(A* z, int64_t vocab, A lse, A dlogp, A dentropy, A entropy) {
  if (dentropy == A(0)) {
    for (int64_t v = 0; v < vocab; ++v) z[v] = -dlogp * Exp(z[v] - lse);
    return;
  }
  A base = Fma(dentropy, entropy, dlogp);
  for (int64_t v = 0; v < vocab; ++v) {
    A logp = Bounded(z[v] - lse);
    z[v] = -Exp(logp) * Fma(dentropy, logp, base);
  }
}

}  // namespace

template <class T>
void LogprobBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                  std::span<const int32_t> target_T, double temperature,
                  const TokenLogprobResult& result) {
  using A = Acc<T>;
  Rows<T> logits(logits_BV);
  A *logp = result.logp_T.data<A>(), *lse = result.lse_T.data<A>();
  A* entropy = result.entropy_T.defined() ? result.entropy_T.data<A>() : nullptr;
  int64_t vocab = logits_BV.cols();
  ctx.pool().ParallelFor(logits_BV.rows(), RowGrain(vocab), [&](int64_t begin, int64_t end) {
    std::vector<A> z(vocab);
    for (int64_t b = begin; b < end; ++b) {
      int32_t t = row_B[b];
      LoadLogits(logits[b], temperature, z.data(), vocab);
      RowSoftmax<A> row = SoftmaxOf(z.data(), vocab);
      lse[t] = row.lse;
      logp[t] = row.Logp(z[target_T[t]]);
      if (entropy) entropy[t] = EntropyOf(z.data(), vocab, row);
    }
  });
}

template <class T>
void LogprobGradientBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                          std::span<const int32_t> target_T, double temperature,
                          const TokenLogprobResult& saved, const Tensor& dlogp_T,
                          const Tensor& dentropy_T) {
  using A = Acc<T>;
  Rows<T> logits(logits_BV);
  const A *lse = saved.lse_T.data<A>(), *dlogp = dlogp_T.data<A>();
  const A* dentropy = dentropy_T.defined() ? dentropy_T.data<A>() : nullptr;
  const A* entropy = dentropy ? saved.entropy_T.data<A>() : nullptr;
  int64_t vocab = logits_BV.cols();
  A per_logit = A(1) / static_cast<A>(temperature);
  ctx.pool().ParallelFor(logits_BV.rows(), RowGrain(vocab), [&](int64_t begin, int64_t end) {
    std::vector<A> z(vocab);
    for (int64_t b = begin; b < end; ++b) {
      int32_t t = row_B[b];
      LoadLogits(logits[b], temperature, z.data(), vocab);
      GradientRow(z.data(), vocab, lse[t], dlogp[t], dentropy ? dentropy[t] : A(0),
                  entropy ? entropy[t] : A(0));
      z[target_T[t]] += dlogp[t];
      T* out = logits[b];
      for (int64_t v = 0; v < vocab; ++v) out[v] = Store<T>(z[v] * per_logit);
    }
  });
}

#define HONE_INSTANTIATE(T)                                                                   \
  template void LogprobBlock<T>(Context&, const Tensor&, std::span<const int32_t>,            \
                                std::span<const int32_t>, double, const TokenLogprobResult&); \
  template void LogprobGradientBlock<T>(Context&, const Tensor&, std::span<const int32_t>,    \
                                        std::span<const int32_t>, double,                     \
                                        const TokenLogprobResult&, const Tensor&, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
