#include "kernels/token_logprob/token_logprob_cpu.h"

#include <algorithm>
#include <vector>

#include "kernels/token_logprob/head_inputs.h"
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
    A logp = z[v] - lse;
    z[v] = -Exp(logp) * Fma(dentropy, logp, base);
  }
}

}  // namespace

template <class T>
void LogprobBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> target_B,
                  double temperature, const TokenLogprobResult& result) {
  using A = Acc<T>;
  Rows<T> logits(logits_BV);
  A *logp = result.logp_T.data<A>(), *lse = result.lse_T.data<A>();
  A* entropy = result.entropy_T.defined() ? result.entropy_T.data<A>() : nullptr;
  int64_t vocab = logits_BV.cols();
  ctx.pool().ParallelFor(logits_BV.rows(), RowGrain(vocab), [&](int64_t begin, int64_t end) {
    std::vector<A> z(vocab);
    for (int64_t b = begin; b < end; ++b) {
      LoadLogits(logits[b], temperature, z.data(), vocab);
      RowSoftmax<A> row = SoftmaxOf(z.data(), vocab);
      lse[b] = row.lse;
      logp[b] = HasTarget(target_B[b]) ? row.Logp(z[target_B[b]]) : A(0);
      if (!entropy) continue;
      entropy[b] = HasTarget(target_B[b]) ? EntropyOf(z.data(), vocab, row) : A(0);
    }
  });
}

template <class T>
void LogprobGradientBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> target_B,
                          double temperature, const TokenLogprobResult& saved,
                          const Tensor& dlogp_B, const Tensor& dentropy_B) {
  using A = Acc<T>;
  Rows<T> logits(logits_BV);
  const A *lse = saved.lse_T.data<A>(), *dlogp = dlogp_B.data<A>();
  const A* dentropy = dentropy_B.defined() ? dentropy_B.data<A>() : nullptr;
  const A* entropy = dentropy ? saved.entropy_T.data<A>() : nullptr;
  int64_t vocab = logits_BV.cols();
  A per_logit = A(1) / static_cast<A>(temperature);
  ctx.pool().ParallelFor(logits_BV.rows(), RowGrain(vocab), [&](int64_t begin, int64_t end) {
    std::vector<A> z(vocab);
    for (int64_t b = begin; b < end; ++b) {
      A dh = dentropy ? dentropy[b] : A(0);
      if (!HasTarget(target_B[b]) || (dlogp[b] == A(0) && dh == A(0))) {
        std::fill_n(logits[b], vocab, Store<T>(A(0)));
        continue;
      }
      LoadLogits(logits[b], temperature, z.data(), vocab);
      GradientRow(z.data(), vocab, lse[b], dlogp[b], dh, entropy ? entropy[b] : A(0));
      z[target_B[b]] += dlogp[b];
      T* out = logits[b];
      for (int64_t v = 0; v < vocab; ++v) out[v] = Store<T>(z[v] * per_logit);
    }
  });
}

#define HONE_INSTANTIATE(T)                                                                        \
  template void LogprobBlock<T>(Context&, const Tensor&, std::span<const int32_t>, double,         \
                                const TokenLogprobResult&);                                        \
  template void LogprobGradientBlock<T>(Context&, const Tensor&, std::span<const int32_t>, double, \
                                        const TokenLogprobResult&, const Tensor&, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
