#include "kernels/cross_entropy/cross_entropy_cpu.h"

#include <vector>

#include "kernels/dispatch.h"
#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels::cpu {

// d(−w·logp)/dz_v = w · (p_v − [v = target]), with p_v = exp(z_v − max) / sum.
template <class T>
void CrossEntropyBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                       std::span<const int32_t> target_T, std::span<const float> weight_T,
                       bool gradient, const Tensor& logp_T) {
  using A = Acc<T>;
  Rows<T> logits(logits_BV);
  A* logp = logp_T.data<A>();
  int64_t vocab = logits_BV.cols();
  ctx.pool().ParallelFor(logits_BV.rows(), RowGrain(vocab), [&](int64_t begin, int64_t end) {
    std::vector<A> z(vocab);
    for (int64_t b = begin; b < end; ++b) {
      int32_t t = row_B[b], target = target_T[t];
      LoadLogits(logits[b], 1.0, z.data(), vocab);
      A target_z = z[target];
      RowSoftmax<A> row = gradient ? SoftmaxInPlace(z.data(), vocab) : SoftmaxOf(z.data(), vocab);
      logp[t] = row.Logp(target_z);
      if (!gradient) continue;
      A weight = static_cast<A>(weight_T[t]), scale = weight / row.sum;
      A at_target = Fma(z[target], scale, -weight);
      T* out = logits[b];
      for (int64_t v = 0; v < vocab; ++v) out[v] = Store<T>(z[v] * scale);
      out[target] = Store<T>(at_target);
    }
  });
}

#define HONE_INSTANTIATE(T)                                                                  \
  template void CrossEntropyBlock<T>(Context&, const Tensor&, std::span<const int32_t>,      \
                                     std::span<const int32_t>, std::span<const float>, bool, \
                                     const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
