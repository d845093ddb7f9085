#include "kernels/cuda/elementwise.h"
#include "kernels/swiglu/swiglu_cuda.h"

namespace hone::kernels::cuda {
namespace {

template <class T>
struct Forward {
  static constexpr int kWidth = kWidthOf<T>;
  Rows<T> gate, up, h;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    using A = Acc<T>;
    A g[kWidth], u[kWidth];
    LoadPacks<kWidth>(gate[row] + i, count, aligned, g);
    LoadPacks<kWidth>(up[row] + i, count, aligned, u);
    for (int j = 0; j < kWidth; ++j) g[j] = g[j] / (A(1) + Exp(-g[j])) * u[j];
    StorePacks<kWidth>(g, count, aligned, h[row] + i);
  }
};

// silu'(g) = σ(g) · (1 + g · (1 − σ(g)))
template <class T>
struct Backward {
  static constexpr int kWidth = kWidthOf<T>;
  Rows<T> dh, gate, up;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    using A = Acc<T>;
    A d[kWidth], g[kWidth], u[kWidth], h[kWidth];
    LoadPacks<kWidth>(dh[row] + i, count, aligned, d);
    LoadPacks<kWidth>(gate[row] + i, count, aligned, g);
    LoadPacks<kWidth>(up[row] + i, count, aligned, u);
    for (int j = 0; j < kWidth; ++j) {
      A sum = A(1) + Exp(-g[j]), sigmoid = A(1) / sum;
      h[j] = g[j] / sum * u[j];
      u[j] = d[j] * u[j] * sigmoid * Fma(g[j], A(1) - sigmoid, A(1));
      d[j] = d[j] * g[j] * sigmoid;
    }
    StorePacks<kWidth>(h, count, aligned, dh[row] + i);
    StorePacks<kWidth>(u, count, aligned, gate[row] + i);
    StorePacks<kWidth>(d, count, aligned, up[row] + i);
  }
};

}  // namespace

template <class T>
void SwiGlu(Context& ctx, const Tensor& gate_TF, const Tensor& up_TF, const Tensor& h_TF) {
  ForEachElement(ctx, "swiglu", true, Forward<T>{Rows<T>(gate_TF), Rows<T>(up_TF), Rows<T>(h_TF)},
                 gate_TF, up_TF, h_TF);
}

template <class T>
void SwiGluBackward(Context& ctx, const Tensor& dh_TF, const Tensor& gate_TF, const Tensor& up_TF) {
  ForEachElement(ctx, "swiglu", true, Backward<T>{Rows<T>(dh_TF), Rows<T>(gate_TF), Rows<T>(up_TF)},
                 dh_TF, gate_TF, up_TF);
}

#define HONE_INSTANTIATE(T)                                                       \
  template void SwiGlu<T>(Context&, const Tensor&, const Tensor&, const Tensor&); \
  template void SwiGluBackward<T>(Context&, const Tensor&, const Tensor&, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
