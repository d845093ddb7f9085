// R rows, D columns. A row is shared by the kThreads threads of a warp or, when it is long, of a
// block: its length alone decides, so a row's bits are its own.
#include "kernels/cuda/row_math.h"
#include "kernels/norm/rms_norm_cuda.h"

namespace hone::kernels::cuda {
namespace {

constexpr std::string_view kOp = "rms_norm";
constexpr int kBlockThreads = 256;
constexpr int64_t kWarpCols = 1024;  // rows up to this length take one warp
constexpr int64_t kSlabs = 512;      // at most so many partial sums of dw

// The row that this thread works on, and its number among the threads of that row.
template <int kThreads>
__device__ int64_t RowOf() {
  return static_cast<int64_t>(blockIdx.x) * (blockDim.x / kThreads) + threadIdx.x / kThreads;
}
template <int kThreads>
__device__ int MemberOf() {
  return static_cast<int>(threadIdx.x % kThreads);
}

// From the sum of the squares of a row, which all of its threads have. Where that overflowed: in
// smaller units, beside which eps is nothing.
template <int kThreads, class T>
__device__ Acc<T> InverseRms(Acc<T> squares, const T* x, Acc<T> eps, int64_t cols, bool aligned) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  if (!(squares == Infinity<A>())) return A(1) / Sqrt(squares / static_cast<A>(cols) + eps);
  const A unit = sizeof(A) == sizeof(float) ? A(0x1p-80) : A(0x1p-600);
  squares = 0;
  ForPacks<kThreads, T>(MemberOf<kThreads>(), cols, [&](int64_t i, int64_t count) {
    A v[kSize];
    LoadPacks<kSize>(x + i, count, aligned, v);
    for (int j = 0; j < kSize; ++j) squares = Fma(v[j] * unit, v[j] * unit, squares);
  });
  return unit / Sqrt(RowSum<kThreads>(squares) / static_cast<A>(cols));
}

template <class T, int kThreads>
__global__ void ForwardKernel(Rows<T> x_RD, const T* w, Acc<T> eps, int64_t rows, int64_t cols,
                              bool aligned, Rows<T> y_RD) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  int64_t r = RowOf<kThreads>();
  int member = MemberOf<kThreads>();
  if (r >= rows) return;  // a whole warp that has no row
  const T* x = x_RD[r];
  A squares = 0;
  ForPacks<kThreads, T>(member, cols, [&](int64_t i, int64_t count) {
    A v[kSize];
    LoadPacks<kSize>(x + i, count, aligned, v);
    for (int j = 0; j < kSize; ++j) squares = Fma(v[j], v[j], squares);
  });
  A inverse = InverseRms<kThreads>(RowSum<kThreads>(squares), x, eps, cols, aligned);
  ForPacks<kThreads, T>(member, cols, [&](int64_t i, int64_t count) {
    A v[kSize], scale[kSize];
    LoadPacks<kSize>(x + i, count, aligned, v);
    LoadPacks<kSize>(w + i, count, aligned, scale);
    for (int j = 0; j < kSize; ++j) v[j] = v[j] * inverse * scale[j];
    StorePacks<kSize>(v, count, aligned, y_RD[r] + i);
  });
}

// With r = 1/rms and n = x·r:  dx = r · (w·dy − n · mean(n · w·dy)). Keeps r for dw.
template <class T, int kThreads>
__global__ void InputGradientKernel(Rows<T> dy_RD, Rows<T> x_RD, const T* w, Acc<T> eps,
                                    int64_t rows, int64_t cols, bool aligned, Rows<T> dx_RD,
                                    Acc<T>* inverse_R) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  int64_t r = RowOf<kThreads>();
  int member = MemberOf<kThreads>();
  if (r >= rows) return;  // a whole warp that has no row
  const T *x = x_RD[r], *dy = dy_RD[r];
  A squares = 0, dot = 0;
  auto load = [&](int64_t i, int64_t count, A* v, A* g) {  // x and w·dy
    A scale[kSize];
    LoadPacks<kSize>(x + i, count, aligned, v);
    LoadPacks<kSize>(dy + i, count, aligned, g);
    LoadPacks<kSize>(w + i, count, aligned, scale);
    for (int j = 0; j < kSize; ++j) g[j] *= scale[j];
  };
  ForPacks<kThreads, T>(member, cols, [&](int64_t i, int64_t count) {
    A v[kSize], g[kSize];
    load(i, count, v, g);
    for (int j = 0; j < kSize; ++j) {
      squares = Fma(v[j], v[j], squares);
      dot = Fma(g[j], v[j], dot);
    }
  });
  A inverse = InverseRms<kThreads>(RowSum<kThreads>(squares), x, eps, cols, aligned);
  A mean = RowSum<kThreads>(dot) * inverse / static_cast<A>(cols);
  if (member == 0) inverse_R[r] = inverse;
  ForPacks<kThreads, T>(member, cols, [&](int64_t i, int64_t count) {
    A v[kSize], g[kSize];
    load(i, count, v, g);
    for (int j = 0; j < kSize; ++j) g[j] = inverse * Fma(-(v[j] * inverse), mean, g[j]);
    StorePacks<kSize>(g, count, aligned, dx_RD[r] + i);
  });
}

// dw of a slab of rows, in row order; a thread takes a pack of columns.
template <class T>
__global__ void SlabGradientKernel(Rows<T> dy_RD, Rows<T> x_RD, const Acc<T>* inverse_R,
                                   int64_t rows, int64_t cols, int64_t slab_rows, int64_t tiles,
                                   bool aligned, Acc<T>* partial_SD) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  int64_t slab = blockIdx.x / tiles;
  int64_t i = (blockIdx.x % tiles * blockDim.x + threadIdx.x) * kSize;
  if (i >= cols) return;
  int64_t end = (slab + 1) * slab_rows < rows ? (slab + 1) * slab_rows : rows;
  A sum[kSize] = {};
  for (int64_t r = slab * slab_rows; r < end; ++r) {
    A v[kSize], g[kSize], inverse = inverse_R[r];
    LoadPacks<kSize>(x_RD[r] + i, cols - i, aligned, v);
    LoadPacks<kSize>(dy_RD[r] + i, cols - i, aligned, g);
    for (int j = 0; j < kSize; ++j) sum[j] = Fma(g[j], v[j] * inverse, sum[j]);
  }
  for (int j = 0; j < kSize && i + j < cols; ++j) partial_SD[slab * cols + i + j] = sum[j];
}

template <class A>
__global__ void AddSlabsKernel(const A* partial_SD, int64_t slabs, int64_t cols, A* dw_D) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= cols) return;
  A sum = dw_D[i];
  for (int64_t s = 0; s < slabs; ++s) sum += partial_SD[s * cols + i];
  dw_D[i] = sum;
}

// Calls fn(std::integral_constant<int, threads a row>, blocks).
template <class Fn>
void SwitchRowThreads(int64_t rows, int64_t cols, Fn fn) {
  if (cols <= kWarpCols) {
    int64_t each = kBlockThreads / kWarpSize;
    fn(std::integral_constant<int, kWarpSize>{},
       Blocks{static_cast<unsigned>(CeilDiv(rows, each)), kBlockThreads});
  } else {
    fn(std::integral_constant<int, kBlockThreads>{},
       Blocks{static_cast<unsigned>(rows), kBlockThreads});
  }
}

}  // namespace

template <class T>
void RmsNorm(Context& ctx, const Tensor& x_RD, const Tensor& w_D, double eps, const Tensor& y_RD) {
  int64_t rows = x_RD.rows(), cols = x_RD.cols();
  SwitchRowThreads(rows, cols, [&](auto threads, const Blocks& blocks) {
    Launch(ctx, kOp, ForwardKernel<T, decltype(threads)::value>, blocks, Rows<T>(x_RD),
           w_D.data<T>(), static_cast<Acc<T>>(eps), rows, cols, RowsAligned(x_RD, w_D, y_RD),
           Rows<T>(y_RD));
  });
}

template <class T>
void RmsNormBackward(Context& ctx, const Tensor& dy_RD, const Tensor& x_RD, const Tensor& w_D,
                     const Tensor& dw_D, double eps, const Tensor& dx_RD) {
  using A = Acc<T>;
  int64_t rows = x_RD.rows(), cols = x_RD.cols();
  if (x_RD.size() == 0) return;
  bool aligned = RowsAligned(dy_RD, x_RD, w_D, dx_RD);
  Tensor inverse_R = ctx.Empty({rows}, DTypeOf<A>::value);
  SwitchRowThreads(rows, cols, [&](auto threads, const Blocks& blocks) {
    Launch(ctx, kOp, InputGradientKernel<T, decltype(threads)::value>, blocks, Rows<T>(dy_RD),
           Rows<T>(x_RD), w_D.data<T>(), static_cast<A>(eps), rows, cols, aligned, Rows<T>(dx_RD),
           inverse_R.data<A>());
  });
  int64_t slab_rows = std::max<int64_t>(16, CeilDiv(rows, kSlabs)),
          slabs = CeilDiv(rows, slab_rows);
  int64_t threads = ThreadsFor(CeilDiv(cols, Pack<T>::kSize), 64);
  int64_t tiles = CeilDiv(cols, threads * Pack<T>::kSize);
  Tensor partial_SD = ctx.Empty({slabs, cols}, DTypeOf<A>::value);
  Launch(ctx, kOp, SlabGradientKernel<T>,
         {static_cast<unsigned>(slabs * tiles), static_cast<unsigned>(threads)}, Rows<T>(dy_RD),
         Rows<T>(x_RD), inverse_R.data<A>(), rows, cols, slab_rows, tiles, aligned,
         partial_SD.data<A>());
  threads = ThreadsFor(cols, 128);
  Launch(ctx, kOp, AddSlabsKernel<A>,
         {static_cast<unsigned>(CeilDiv(cols, threads)), static_cast<unsigned>(threads)},
         partial_SD.data<A>(), slabs, cols, dw_D.data<A>());
}

#define HONE_INSTANTIATE(T)                                                                \
  template void RmsNorm<T>(Context&, const Tensor&, const Tensor&, double, const Tensor&); \
  template void RmsNormBackward<T>(Context&, const Tensor&, const Tensor&, const Tensor&,  \
                                   const Tensor&, double, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
