#include "kernels/rope/rope_cpu.h"

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

// One head: pair (a, b) becomes (a·cos − b·sin, b·cos + a·sin); `sign` −1 turns the other way. The
// elements of pair i stand at i·step and i·step + apart.
template <class T, int kStep>
void RotateHead(T* x, const Acc<T>* cos, const Acc<T>* sin, Acc<T> sign, int64_t pairs,
                int64_t apart) {
#pragma GCC ivdep  // the two halves do not overlap, nor do they with the table
  for (int64_t i = 0; i < pairs; ++i) {
    Acc<T> a = Load(x[i * kStep]), b = Load(x[i * kStep + apart]), s = sign * sin[i];
    x[i * kStep] = Store<T>(a * cos[i] - b * s);
    x[i * kStep + apart] = Store<T>(b * cos[i] + a * s);
  }
}

}  // namespace

template <class T>
void Rope(Context& ctx, const Tensor& x_THR, std::span<const int32_t> position_T,
          const RopeTable& table, RopeForm form, bool inverse) {
  if (x_THR.size() == 0) return;
  Rows<T> x(x_THR);
  Rows<Acc<T>> cos(table.cos_PR), sin(table.sin_PR);
  Acc<T> sign = inverse ? Acc<T>(-1) : Acc<T>(1);
  int64_t heads = x_THR.rows() / x_THR.dim(0), pairs = x_THR.cols() / 2;
  int64_t grain = RowGrain(heads * x_THR.cols());
  ctx.pool().ParallelFor(x_THR.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Acc<T>*c = cos[position_T[t]], *s = sin[position_T[t]];
      for (int64_t h = t * heads; h < (t + 1) * heads; ++h) {
        if (form == RopeForm::kRotateHalf) {
          RotateHead<T, 1>(x[h], c, s, sign, pairs, pairs);
        } else {
          RotateHead<T, 2>(x[h], c, s, sign, pairs, 1);
        }
      }
    }
  });
}

#define HONE_INSTANTIATE(T)                                                                  \
  template void Rope<T>(Context&, const Tensor&, std::span<const int32_t>, const RopeTable&, \
                        RopeForm, bool);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
