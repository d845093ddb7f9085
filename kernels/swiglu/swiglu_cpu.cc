#include "kernels/swiglu/swiglu_cpu.h"

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

template <class T>
void ForwardRow(const T* gate, const T* up, T* h, int64_t n) {
  using A = Acc<T>;
  for (int64_t i = 0; i < n; ++i) {
    A g = Load(gate[i]);
    h[i] = Store<T>(g / (A(1) + Exp(-g)) * Load(up[i]));
  }
}

// silu'(g) = σ(g) · (1 + g · (1 − σ(g)))
template <class T>
void BackwardRow(T* dh, T* gate, T* up, int64_t n) {
  using A = Acc<T>;
  for (int64_t i = 0; i < n; ++i) {
    A g = Load(gate[i]), u = Load(up[i]), d = Load(dh[i]);
    A sum = A(1) + Exp(-g), sigmoid = A(1) / sum;
    dh[i] = Store<T>(g / sum * u);
    gate[i] = Store<T>(d * u * sigmoid * Fma(g, A(1) - sigmoid, A(1)));
    up[i] = Store<T>(d * g * sigmoid);
  }
}

}  // namespace

template <class T>
void SwiGlu(Context& ctx, const Tensor& gate_TF, const Tensor& up_TF, const Tensor& h_TF) {
  Rows<T> gate(gate_TF), up(up_TF), h(h_TF);
  int64_t cols = gate_TF.cols();
  ctx.pool().ParallelFor(gate_TF.rows(), RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) ForwardRow<T>(gate[r], up[r], h[r], cols);
  });
}

template <class T>
void SwiGluBackward(Context& ctx, const Tensor& dh_TF, const Tensor& gate_TF, const Tensor& up_TF) {
  Rows<T> dh(dh_TF), gate(gate_TF), up(up_TF);
  int64_t cols = gate_TF.cols();
  ctx.pool().ParallelFor(gate_TF.rows(), RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) BackwardRow<T>(dh[r], gate[r], up[r], cols);
  });
}

#define HONE_INSTANTIATE(T)                                                       \
  template void SwiGlu<T>(Context&, const Tensor&, const Tensor&, const Tensor&); \
  template void SwiGluBackward<T>(Context&, const Tensor&, const Tensor&, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
