#include "kernels/adamw/adamw_cpu.h"

#include <cmath>
#include <limits>

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

constexpr int64_t kBlock = 4096;  // elements whose squares are summed together

// The step's constants in the master's type. With c1 = 1 − β1^step and c2 = 1 − β2^step:
//   m ← m + (1 − β1)(g − m),  v ← β2 v + (1 − β2) g²
//   θ ← θ (1 − lr·λ) − (lr / c1) · m / (√v / √c2 + ε)
template <class M>
struct Constants {
  Constants(const AdamWStep& s, bool decay)
      : scale(M(s.gradient_scale)),
        keep(M(1 - (decay ? s.lr * s.weight_decay : 0))),
        one_minus_beta1(M(1 - s.beta1)),
        beta2(M(s.beta2)),
        one_minus_beta2(M(1 - s.beta2)),
        step_size(M(s.lr / (1 - std::pow(s.beta1, static_cast<double>(s.step))))),
        root_c2(M(std::sqrt(1 - std::pow(s.beta2, static_cast<double>(s.step))))),
        eps(M(s.eps)) {}
  M scale, keep, one_minus_beta1, beta2, one_minus_beta2, step_size, root_c2, eps;
};

// Every element by itself: bits do not depend on how a tensor is cut into ranges.
template <class M, class S>
void Update(M* master, const M* gradient, S* exp_avg, S* exp_avg_sq, int64_t n,
            const Constants<M>& c) {
  for (int64_t i = 0; i < n; ++i) {
    M g = gradient[i] * c.scale;
    M m = M(Load(exp_avg[i])), v = M(Load(exp_avg_sq[i]));
    m = Fma(c.one_minus_beta1, g - m, m);
    v = Fma(c.one_minus_beta2 * g, g, c.beta2 * v);
    exp_avg[i] = Store<S>(m);
    exp_avg_sq[i] = Store<S>(v);
    M denominator = std::sqrt(v) / c.root_c2 + c.eps;
    if (denominator == M(0)) denominator = std::numeric_limits<M>::infinity();
    master[i] = Fma(-c.step_size, m / denominator, master[i] * c.keep);
  }
}

template <class V, class M>
void Publish(const M* master, V* value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) value[i] = Store<V>(master[i]);
}

}  // namespace

template <class M, class S>
void AdamWRange(const AdamWTensor& t, const AdamWStep& step, int64_t begin, int64_t end) {
  Constants<M> constants(step, t.decay);
  M* master = t.master.data<M>() + begin;
  int64_t n = end - begin;
  Update<M, S>(master, t.gradient.data<M>() + begin, t.exp_avg.data<S>() + begin,
               t.exp_avg_sq.data<S>() + begin, n, constants);
  if (!t.value.defined() || t.value.raw() == t.master.raw()) return;
  SwitchFloat("adamw", t.value.dtype(), [&](auto v) {
    using V = decltype(v);
    Publish<V>(master, t.value.data<V>() + begin, n);
  });
}

template <class T>
double SumOfSquares(Context& ctx, const Tensor& x) {
  const T* data = x.data<T>();
  int64_t blocks = (x.size() + kBlock - 1) / kBlock;
  std::vector<double> partial(blocks);
  ctx.pool().ParallelFor(blocks, 4, [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) {
      const T* block = data + b * kBlock;
      partial[b] = SumOver<double>(std::min(kBlock, x.size() - b * kBlock), [block](int64_t i) {
        double v = Load(block[i]);
        return v * v;
      });
    }
  });
  double sum = 0;
  for (double p : partial) sum += p;
  return sum;
}

template void AdamWRange<float, float>(const AdamWTensor&, const AdamWStep&, int64_t, int64_t);
template void AdamWRange<float, BF16>(const AdamWTensor&, const AdamWStep&, int64_t, int64_t);
template void AdamWRange<double, double>(const AdamWTensor&, const AdamWStep&, int64_t, int64_t);
template void AdamWRange<double, BF16>(const AdamWTensor&, const AdamWStep&, int64_t, int64_t);
template double SumOfSquares<float>(Context&, const Tensor&);
template double SumOfSquares<double>(Context&, const Tensor&);
template double SumOfSquares<BF16>(Context&, const Tensor&);

}  // namespace hone::kernels::cpu
