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

}  // namespace

template <class T>
void Linear(Context& ctx, const Tensor& x_TK, const Tensor& w_NK, const Tensor* bias_N,
            const Tensor& y_TN) {
  Tensor sum_TN = Accumulator<T>(ctx, y_TN);
  Rows<Acc<T>> sum(sum_TN);
  int64_t M = y_TN.rows(), N = y_TN.cols(), K = x_TK.cols();
  if (bias_N != nullptr) {
    const T* bias = bias_N->data<T>();
    for (int64_t t = 0; t < M; ++t) LoadRow(bias, sum[t], N);
  }
  MatrixView<T> x = View<T>(x_TK, false);
  bool accumulate = bias_N != nullptr;
  if (Tensor packed = Packed<T>(ctx, w_NK); packed.defined()) {
    GemmWithPacked<T>(ctx.pool(), M, N, K, x, packed.data<Acc<T>>(), sum.data, sum.stride,
                      accumulate);
  } else {
    Gemm<T>(ctx, M, N, K, x, View<T>(w_NK, true), sum.data, sum.stride, accumulate);
  }
  RoundInto(ctx, sum_TN, y_TN);
}

template <class T>
void LinearInputGradient(Context& ctx, const Tensor& dy_TN, const Tensor& w_NK,
                         const Tensor& dx_TK) {
  Tensor sum_TK = Accumulator<T>(ctx, dx_TK);
  Rows<Acc<T>> sum(sum_TK);
  Gemm<T>(ctx, dx_TK.rows(), dx_TK.cols(), dy_TN.cols(), View<T>(dy_TN, false),
          View<T>(w_NK, false), sum.data, sum.stride, false);
  RoundInto(ctx, sum_TK, dx_TK);
}

template <class T>
void LinearWeightGradient(Context& ctx, const Tensor& dy_TN, const Tensor& x_TK,
                          const Tensor& dw_NK, const Tensor* dbias_N) {
  Rows<Acc<T>> dw(dw_NK);
  int64_t tokens = dy_TN.rows(), N = dy_TN.cols();
  Gemm<T>(ctx, N, dw_NK.cols(), tokens, View<T>(dy_TN, true), View<T>(x_TK, false), dw.data,
          dw.stride, true);
  if (dbias_N == nullptr) return;
  Acc<T>* dbias = dbias_N->data<Acc<T>>();
  Rows<T> dy(dy_TN);
  ctx.pool().ParallelFor(N, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t n = begin; n < end; ++n) dbias[n] += Load(dy[t][n]);
    }
  });
}

#define HONE_LINEAR(T)                                                                           \
  template void Linear<T>(Context&, const Tensor&, const Tensor&, const Tensor*, const Tensor&); \
  template void LinearInputGradient<T>(Context&, const Tensor&, const Tensor&, const Tensor&);   \
  template void LinearWeightGradient<T>(Context&, const Tensor&, const Tensor&, const Tensor&,   \
                                        const Tensor*);
HONE_LINEAR(float)
HONE_LINEAR(double)
HONE_LINEAR(BF16)
#undef HONE_LINEAR

}  // namespace hone::kernels::cpu
