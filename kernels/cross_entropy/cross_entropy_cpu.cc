#include "kernels/cross_entropy/cross_entropy_cpu.h"

#include <algorithm>
#include <vector>

#include "kernels/token_logprob/head_inputs.h"
#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels::cpu {

// d(−w·logp)/dz_v = w · (p_v − [v = target]), with p_v = exp(z_v − max) / sum.
template <class T>
void CrossEntropyBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> target_B,
                       std::span<const float> weight_B, bool gradient, const Tensor& logp_B) {
  using A = Acc<T>;
  Rows<T> logits(logits_BV);
  A* logp = logp_B.data<A>();
  int64_t vocab = logits_BV.cols();
  ctx.pool().ParallelFor(logits_BV.rows(), RowGrain(vocab), [&](int64_t begin, int64_t end) {
    std::vector<A> z(vocab);
    for (int64_t b = begin; b < end; ++b) {
      int32_t target = target_B[b];
      bool keep = gradient && HasTarget(target) && weight_B[b] != 0.0f;
      logp[b] = A(0);
      A scale = A(0);
      if (HasTarget(target)) {
        LoadLogits(logits[b], 1.0, z.data(), vocab);
        A target_z = z[target];
        RowSoftmax<A> row = SoftmaxOf(z.data(), vocab, keep ? z.data() : nullptr);
        logp[b] = row.Logp(target_z);
        scale = static_cast<A>(weight_B[b]) / row.sum;
      }
      if (!gradient) continue;
      T* out = logits[b];
      if (!keep) {
        std::fill_n(out, vocab, Store<T>(A(0)));
        continue;
      }
      A at_target = Fma(z[target], scale, -static_cast<A>(weight_B[b]));
      for (int64_t v = 0; v < vocab; ++v) out[v] = Store<T>(z[v] * scale);
      out[target] = Store<T>(at_target);
    }
  });
}

template void CrossEntropyBlock<float>(Context&, const Tensor&, std::span<const int32_t>,
                                       std::span<const float>, bool, const Tensor&);
template void CrossEntropyBlock<double>(Context&, const Tensor&, std::span<const int32_t>,
                                        std::span<const float>, bool, const Tensor&);
template void CrossEntropyBlock<BF16>(Context&, const Tensor&, std::span<const int32_t>,
                                      std::span<const float>, bool, const Tensor&);

}  // namespace hone::kernels::cpu
