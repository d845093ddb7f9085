// R rows, D columns. Statistics of a row are lane sums (vec_math.h), so a row's bits are its own.
#include "kernels/norm/rms_norm_cpu.h"

#include <limits>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

// Rows whose share of dw is summed together before the blocks are added in order.
constexpr int64_t kBlockRows = 64;

// Where the squares overflow: in smaller units. Beside such numbers eps is nothing.
template <class T>
Acc<T> InverseOfLargeRms(const T* x, int64_t cols) {
  using A = Acc<T>;
  constexpr A kUnit = sizeof(A) == sizeof(float) ? A(0x1p-80) : A(0x1p-600);
  A squares = SumOver<A>(cols, [=](int64_t i) {
    A v = Load(x[i]) * kUnit;
    return v * v;
  });
  return kUnit / std::sqrt(squares / static_cast<A>(cols));
}

template <class T>
Acc<T> InverseRms(const T* x, int64_t cols, double eps) {
  using A = Acc<T>;
  A squares = Dot(x, x, cols);
  if (squares > std::numeric_limits<A>::max()) return InverseOfLargeRms(x, cols);
  return A(1) / std::sqrt(squares / static_cast<A>(cols) + static_cast<A>(eps));
}

template <class T>
void AddRow(const T* more, int64_t cols, T* x) {
  for (int64_t i = 0; i < cols; ++i) x[i] = Store<T>(Load(x[i]) + Load(more[i]));
}

// With r = 1/rms and n = x·r:  dx = r · (w·dy − n · mean(n · w·dy)),  dw += dy · n.
template <class T>
void BackwardRow(const T* dy, const T* x, const T* w, double eps, int64_t cols, T* dx, Acc<T>* dw) {
  using A = Acc<T>;
  A inverse = InverseRms(x, cols, eps);
  A dot = SumOver<A>(cols, [=](int64_t i) { return Load(dy[i]) * Load(w[i]) * Load(x[i]); });
  A mean = dot * inverse / static_cast<A>(cols);
  for (int64_t i = 0; i < cols; ++i) {
    A normed = Load(x[i]) * inverse;
    A g = Load(dy[i]);
    dw[i] = Fma(g, normed, dw[i]);
    dx[i] = Store<T>(inverse * Fma(-normed, mean, g * Load(w[i])));
  }
}

}  // namespace

template <class T>
void RmsNorm(Context& ctx, const Tensor& x_RD, const Tensor* more_RD, const Tensor& w_D, double eps,
             const Tensor& y_RD) {
  Rows<T> x(x_RD), y(y_RD), more(more_RD ? *more_RD : x_RD);
  const T* w = w_D.data<T>();
  int64_t cols = x_RD.cols();
  ctx.pool().ParallelFor(x_RD.rows(), RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (more_RD) AddRow(more[r], cols, x[r]);
      Acc<T> inverse = InverseRms(x[r], cols, eps);
      const T* from = x[r];
      T* to = y[r];
      for (int64_t i = 0; i < cols; ++i) {
        to[i] = Store<T>(Load(from[i]) * inverse * Load(w[i]));
      }
    }
  });
}

template <class T>
void RmsNormBackward(Context& ctx, const Tensor& dy_RD, const Tensor& x_RD, const Tensor& w_D,
                     const Tensor& dw_D, double eps, const Tensor* more_RD, const Tensor& dx_RD) {
  using A = Acc<T>;
  Rows<T> dy(dy_RD), x(x_RD), dx(dx_RD), more(more_RD ? *more_RD : x_RD);
  const T* w = w_D.data<T>();
  int64_t rows = x_RD.rows(), cols = x_RD.cols();
  int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  std::vector<A> partial(blocks * cols, A(0));
  ctx.pool().ParallelFor(blocks, RowGrain(cols * kBlockRows), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      for (int64_t r = b * kBlockRows; r < std::min(rows, (b + 1) * kBlockRows); ++r) {
        BackwardRow<T>(dy[r], x[r], w, eps, cols, dx[r], partial.data() + b * cols);
        if (more_RD) AddRow(more[r], cols, dx[r]);
      }
    }
  });
  A* dw = dw_D.data<A>();
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < cols; ++i) dw[i] += partial[b * cols + i];
  }
}

#define HONE_INSTANTIATE(T)                                                               \
  template void RmsNorm<T>(Context&, const Tensor&, const Tensor*, const Tensor&, double, \
                           const Tensor&);                                                \
  template void RmsNormBackward<T>(Context&, const Tensor&, const Tensor&, const Tensor&, \
                                   const Tensor&, double, const Tensor*, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
