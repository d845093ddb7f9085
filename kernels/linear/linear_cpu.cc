#include "kernels/linear/linear_cpu.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/vec_math.h"
#include "runtime/packed_weights.h"

namespace hone::kernels::cpu {
namespace {

template <class T>
MatrixView<T> View(const Tensor& t, bool transposed) {
  return {t.data<T>(), t.row_stride(), transposed};
}

// Where a product is accumulated: `t` itself, or a tensor of f32 when `t` is bf16.
template <class T>
Tensor Accumulator(Context& ctx, const Tensor& t) {
  return DTypeOf<T>::value == DTypeOf<Acc<T>>::value ? t
                                                     : ctx.Empty(t.shape(), DTypeOf<Acc<T>>::value);
}
void RoundInto(Context& ctx, const Tensor& sum, const Tensor& t) {
  if (sum.raw() == t.raw()) return;
  ctx.pool().ParallelFor(t.rows(), RowGrain(t.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) StoreRow(sum.row<float>(r), t.row<BF16>(r), t.cols());
  });
}

constexpr int64_t kManyRows = 1024;  // that a kept weight will meet

// w in panels, packed once and kept; undefined where nothing is kept (PackedWeights).
template <class T>
Tensor Packed(Context& ctx, const Tensor& w_NK) {
  if (ctx.packed_weights == nullptr) return {};
  return ctx.packed_weights->Get(w_NK, [&] {
    int64_t N = w_NK.rows(), K = w_NK.cols();
    Tensor packed = ctx.packed_weights->Room(ctx.allocator(), PackedRightSize<Acc<T>>(K, N),
                                             DTypeOf<Acc<T>>::value);
    PackRight(kManyRows, K, N, View<T>(w_NK, true), packed.data<Acc<T>>());
    return packed;
  });
}

// sum_N += Σ_t x
template <class T>
void AddRows(Context& ctx, const Tensor& x_TN, Acc<T>* sum_N) {
  Rows<T> x(x_TN);
  ctx.pool().ParallelFor(x_TN.cols(), 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < x_TN.rows(); ++t) {
      for (int64_t n = begin; n < end; ++n) sum_N[n] += Load(x[t][n]);
    }
  });
}

}  // namespace

template <class T>
void LinearEach(Context& ctx, const Tensor& x_TK, const std::vector<LinearWeight>& layers,
                const std::vector<Tensor>& y_TN) {
  const int64_t M = x_TK.rows(), K = x_TK.cols();
  const MatrixView<T> x = View<T>(x_TK, false);
  std::vector<Tensor> sum_TN;
  std::vector<Product<T>> products;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [w_NK, bias_N] = layers[i];
    const int64_t N = w_NK.rows();
    sum_TN.push_back(Accumulator<T>(ctx, y_TN[i]));
    Rows<Acc<T>> sum(sum_TN[i]);
    const bool accumulate = bias_N != nullptr;
    if (accumulate) {
      const T* bias = bias_N->data<T>();
      for (int64_t t = 0; t < M; ++t) LoadRow(bias, sum[t], N);
    }
    if (Tensor packed = Packed<T>(ctx, w_NK); packed.defined()) {
      GemmWithPacked<T>(ctx.pool(), M, N, K, x, packed.data<Acc<T>>(), sum.data, sum.stride,
                        accumulate);
    } else {
      products.push_back({M, N, x, View<T>(w_NK, true), sum.data, sum.stride, accumulate});
    }
  }
  GemmEach<T>(ctx, Common::kLeft, K, products);
  for (size_t i = 0; i < layers.size(); ++i) RoundInto(ctx, sum_TN[i], y_TN[i]);
}

template <class T>
void LinearInputGradientSum(Context& ctx, const std::vector<LinearOutput>& layers,
                            const Tensor& dx_TK) {
  Tensor sum_TK = Accumulator<T>(ctx, dx_TK);
  Rows<Acc<T>> sum(sum_TK);
  bool accumulate = false;
  for (const auto& [dy_TN, w_NK] : layers) {
    Gemm<T>(ctx, dx_TK.rows(), dx_TK.cols(), dy_TN.cols(), View<T>(dy_TN, false),
            View<T>(w_NK, false), sum.data, sum.stride, accumulate);
    accumulate = true;
  }
  RoundInto(ctx, sum_TK, dx_TK);
}

template <class T>
void LinearWeightGradientEach(Context& ctx, const Tensor& x_TK,
                              const std::vector<LinearGradient>& layers) {
  const int64_t tokens = x_TK.rows(), K = x_TK.cols();
  std::vector<Product<T>> products;
  for (const auto& [dy_TN, dw_NK, dbias_N] : layers) {
    Rows<Acc<T>> dw(dw_NK);
    products.push_back(
        {dw_NK.rows(), K, View<T>(dy_TN, true), View<T>(x_TK, false), dw.data, dw.stride, true});
  }
  GemmEach<T>(ctx, Common::kRight, tokens, products);
  for (const LinearGradient& layer : layers) {
    if (layer.dbias_N) AddRows<T>(ctx, layer.dy_TN, layer.dbias_N->data<Acc<T>>());
  }
}

#define HONE_LINEAR(T)                                                                   \
  template void LinearEach<T>(Context&, const Tensor&, const std::vector<LinearWeight>&, \
                              const std::vector<Tensor>&);                               \
  template void LinearInputGradientSum<T>(Context&, const std::vector<LinearOutput>&,    \
                                          const Tensor&);                                \
  template void LinearWeightGradientEach<T>(Context&, const Tensor&,                     \
                                            const std::vector<LinearGradient>&);
HONE_LINEAR(float)
HONE_LINEAR(double)
HONE_LINEAR(BF16)
#undef HONE_LINEAR

}  // namespace hone::kernels::cpu
