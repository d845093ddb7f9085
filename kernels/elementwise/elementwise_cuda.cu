#include <type_traits>

#include "kernels/cuda/elementwise.h"
#include "kernels/elementwise/elementwise_cuda.h"

namespace hone::kernels::cuda {
namespace {

// Both operands take part in double when one of them is.
template <class T, class U>
using Common = std::common_type_t<Acc<T>, Acc<U>>;

template <class T, class U>
struct AddTo {
  static constexpr int kWidth = kWidthOf<T, U>;
  Rows<T> x;
  Rows<U> y;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    Acc<T> a[kWidth];
    Acc<U> b[kWidth];
    LoadPacks<kWidth>(x[row] + i, count, aligned, a);
    LoadPacks<kWidth>(y[row] + i, count, aligned, b);
    for (int j = 0; j < kWidth; ++j) {
      a[j] = static_cast<Acc<T>>(Common<T, U>(a[j]) + Common<T, U>(b[j]));
    }
    StorePacks<kWidth>(a, count, aligned, x[row] + i);
  }
};

template <class T>
struct ScaleBy {
  static constexpr int kWidth = kWidthOf<T>;
  Rows<T> x;
  Acc<T> factor;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    Acc<T> a[kWidth];
    LoadPacks<kWidth>(x[row] + i, count, aligned, a);
    for (int j = 0; j < kWidth; ++j) a[j] *= factor;
    StorePacks<kWidth>(a, count, aligned, x[row] + i);
  }
};

template <class T, class U>
struct ScaleRows {
  static constexpr int kWidth = kWidthOf<T>;
  Rows<T> x;
  const U* factor;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    Acc<T> a[kWidth];
    Common<T, U> f = Load(factor[row]);
    LoadPacks<kWidth>(x[row] + i, count, aligned, a);
    for (int j = 0; j < kWidth; ++j) a[j] = static_cast<Acc<T>>(Common<T, U>(a[j]) * f);
    StorePacks<kWidth>(a, count, aligned, x[row] + i);
  }
};

template <class T>
struct SumOfTwo {
  static constexpr int kWidth = kWidthOf<T>;
  Rows<T> x, y, sum;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    Acc<T> a[kWidth], b[kWidth];
    LoadPacks<kWidth>(x[row] + i, count, aligned, a);
    LoadPacks<kWidth>(y[row] + i, count, aligned, b);
    for (int j = 0; j < kWidth; ++j) a[j] += b[j];
    StorePacks<kWidth>(a, count, aligned, sum[row] + i);
  }
};

template <class To, class From>
struct Convert {
  static constexpr int kWidth = kWidthOf<To, From>;
  Rows<From> from;
  Rows<To> to;
  __device__ void operator()(int64_t row, int64_t i, int64_t count, bool aligned) const {
    Acc<From> a[kWidth];
    Acc<To> b[kWidth];
    LoadPacks<kWidth>(from[row] + i, count, aligned, a);
    for (int j = 0; j < kWidth; ++j) b[j] = static_cast<Acc<To>>(a[j]);
    StorePacks<kWidth>(b, count, aligned, to[row] + i);
  }
};

}  // namespace

template <class T, class U>
void AddInPlace(Context& ctx, const Tensor& x, const Tensor& y) {
  ForEachElement(ctx, "add_in_place", true, AddTo<T, U>{Rows<T>(x), Rows<U>(y)}, x, y);
}

template <class T>
void ScaleInPlace(Context& ctx, const Tensor& x, double factor) {
  ForEachElement(ctx, "scale_in_place", true, ScaleBy<T>{Rows<T>(x), static_cast<Acc<T>>(factor)},
                 x);
}

template <class T, class U>
void MultiplyRowsInPlace(Context& ctx, const Tensor& x_TD, const Tensor& factor_T) {
  ForEachElement(ctx, "multiply_rows_in_place", false,
                 ScaleRows<T, U>{Rows<T>(x_TD), factor_T.data<U>()}, x_TD);
}

template <class T>
void Add(Context& ctx, const Tensor& x, const Tensor& y, const Tensor& sum) {
  ForEachElement(ctx, "add", true, SumOfTwo<T>{Rows<T>(x), Rows<T>(y), Rows<T>(sum)}, x, y, sum);
}

template <class To, class From>
void Cast(Context& ctx, const Tensor& from, const Tensor& to) {
  ForEachElement(ctx, "cast", true, Convert<To, From>{Rows<From>(from), Rows<To>(to)}, from, to);
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

}  // namespace hone::kernels::cuda
