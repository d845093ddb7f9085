#include "kernels/elementwise/elementwise_cpu.h"

#include <type_traits>

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

// Both operands take part in double when one of them is.
template <class T, class U>
using Common = std::common_type_t<Acc<T>, Acc<U>>;

// Calls fn(row, first column, end column) over all of `shape`'s elements, shared among the threads.
// Contiguous tensors are one long row.
template <class Fn>
void ForPieces(Context& ctx, const Tensor& shape, bool contiguous, Fn fn) {
  constexpr int64_t kPiece = 16384;
  if (contiguous) {
    ctx.pool().ParallelFor(shape.size(), kPiece,
                           [&](int64_t begin, int64_t end) { fn(0, begin, end); });
    return;
  }
  ctx.pool().ParallelFor(shape.rows(), RowGrain(shape.cols(), kPiece),
                         [&](int64_t begin, int64_t end) {
                           for (int64_t r = begin; r < end; ++r) fn(r, 0, shape.cols());
                         });
}

}  // namespace

template <class T, class U>
void AddInPlace(Context& ctx, const Tensor& x, const Tensor& y) {
  Rows<T> xs(x);
  Rows<U> ys(y);
  ForPieces(ctx, x, x.contiguous() && y.contiguous(), [&](int64_t r, int64_t begin, int64_t end) {
    T* a = xs[r];
    const U* b = ys[r];
    for (int64_t i = begin; i < end; ++i) {
      a[i] = Store<T>(Common<T, U>(Load(a[i])) + Common<T, U>(Load(b[i])));
    }
  });
}

template <class T>
void ScaleInPlace(Context& ctx, const Tensor& x, double factor) {
  Rows<T> xs(x);
  auto f = static_cast<Acc<T>>(factor);
  ForPieces(ctx, x, x.contiguous(), [&](int64_t r, int64_t begin, int64_t end) {
    T* a = xs[r];
    for (int64_t i = begin; i < end; ++i) a[i] = Store<T>(Load(a[i]) * f);
  });
}

template <class T, class U>
void MultiplyRowsInPlace(Context& ctx, const Tensor& x_TD, const Tensor& factor_T) {
  Rows<T> xs(x_TD);
  const U* factor = factor_T.data<U>();
  ForPieces(ctx, x_TD, false, [&](int64_t r, int64_t begin, int64_t end) {
    T* a = xs[r];
    Common<T, U> f = Load(factor[r]);
    for (int64_t i = begin; i < end; ++i) a[i] = Store<T>(Common<T, U>(Load(a[i])) * f);
  });
}

template <class T>
void Add(Context& ctx, const Tensor& x, const Tensor& y, const Tensor& sum) {
  Rows<T> xs(x), ys(y), sums(sum);
  bool contiguous = x.contiguous() && y.contiguous() && sum.contiguous();
  ForPieces(ctx, x, contiguous, [&](int64_t r, int64_t begin, int64_t end) {
    const T *a = xs[r], *b = ys[r];
    T* c = sums[r];
    for (int64_t i = begin; i < end; ++i) c[i] = Store<T>(Load(a[i]) + Load(b[i]));
  });
}

template <class To, class From>
void Cast(Context& ctx, const Tensor& from, const Tensor& to) {
  Rows<From> xs(from);
  Rows<To> ys(to);
  ForPieces(ctx, from, from.contiguous() && to.contiguous(),
            [&](int64_t r, int64_t begin, int64_t end) {
              const From* a = xs[r];
              To* b = ys[r];
              for (int64_t i = begin; i < end; ++i) b[i] = Store<To>(Load(a[i]));
            });
}

#define HONE_TWO_TYPES(T, U)                                                       \
  template void AddInPlace<T, U>(Context&, const Tensor&, const Tensor&);          \
  template void MultiplyRowsInPlace<T, U>(Context&, const Tensor&, const Tensor&); \
  template void Cast<T, U>(Context&, const Tensor&, const Tensor&);
#define HONE_ONE_TYPE(T)                                                       \
  template void ScaleInPlace<T>(Context&, const Tensor&, double);              \
  template void Add<T>(Context&, const Tensor&, const Tensor&, const Tensor&); \
  HONE_TWO_TYPES(T, float) HONE_TWO_TYPES(T, double) HONE_TWO_TYPES(T, BF16)
HONE_ONE_TYPE(float)
HONE_ONE_TYPE(double)
HONE_ONE_TYPE(BF16)
#undef HONE_ONE_TYPE
#undef HONE_TWO_TYPES

}  // namespace hone::kernels::cpu
