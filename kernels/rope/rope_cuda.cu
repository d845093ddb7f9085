#include "kernels/cuda/row_math.h"
#include "kernels/rope/rope_cuda.h"

namespace hone::kernels::cuda {
namespace {

// Pair (a, b) becomes (a·cos − b·sin, b·cos + a·sin); `sign` −1 turns the other way.
template <class A>
__device__ void Turn(A* a, A* b, A cos, A sin, A sign) {
  A s = sign * sin, first = *a;
  *a = first * cos - *b * s;
  *b = *b * cos + first * s;
}

// `count` pairs from pair i on of one head: the first halves stand at x + i, the second ones
// `pairs` behind.
template <class T>
__device__ void TurnHalves(T* x, const Acc<T>* cos, const Acc<T>* sin, Acc<T> sign, int64_t i,
                           int64_t pairs, bool aligned) {
  constexpr int kSize = Pack<T>::kSize;
  Acc<T> a[kSize], b[kSize], c[kSize], s[kSize];
  LoadPacks<kSize>(x + i, pairs - i, aligned, a);
  LoadPacks<kSize>(x + pairs + i, pairs - i, aligned, b);
  LoadPacks<kSize>(cos + i, pairs - i, aligned, c);
  LoadPacks<kSize>(sin + i, pairs - i, aligned, s);
  for (int j = 0; j < kSize; ++j) Turn(a + j, b + j, c[j], s[j], sign);
  StorePacks<kSize>(a, pairs - i, aligned, x + i);
  StorePacks<kSize>(b, pairs - i, aligned, x + pairs + i);
}

// The same with the elements of pair i at x + 2i and x + 2i + 1.
template <class T>
__device__ void TurnNeighbours(T* x, const Acc<T>* cos, const Acc<T>* sin, Acc<T> sign, int64_t i,
                               int64_t pairs, bool aligned) {
  constexpr int kSize = Pack<T>::kSize;
  Acc<T> v[2 * kSize], c[kSize], s[kSize];
  LoadPacks<2 * kSize>(x + 2 * i, 2 * (pairs - i), aligned, v);
  LoadPacks<kSize>(cos + i, pairs - i, aligned, c);
  LoadPacks<kSize>(sin + i, pairs - i, aligned, s);
  for (int j = 0; j < kSize; ++j) Turn(v + 2 * j, v + 2 * j + 1, c[j], s[j], sign);
  StorePacks<2 * kSize>(v, 2 * (pairs - i), aligned, x + 2 * i);
}

// A thread turns kSize pairs of one head; `pieces` threads share a head.
template <class T>
__global__ void RopeKernel(Rows<T> x_THR, const int32_t* position_T, Rows<Acc<T>> cos_PR,
                           Rows<Acc<T>> sin_PR, Acc<T> sign, bool halves, int64_t rows,
                           int64_t heads, int64_t pairs, int64_t pieces, bool aligned) {
  int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= rows * pieces) return;
  int64_t row = at / pieces, i = at % pieces * Pack<T>::kSize;
  int32_t position = position_T[row / heads];
  if (halves) {
    TurnHalves(x_THR[row], cos_PR[position], sin_PR[position], sign, i, pairs, aligned);
  } else {
    TurnNeighbours(x_THR[row], cos_PR[position], sin_PR[position], sign, i, pairs, aligned);
  }
}

}  // namespace

template <class T>
void Rope(Context& ctx, const Tensor& x_THR, std::span<const int32_t> position_T,
          const RopeTable& table, RopeForm form, bool inverse) {
  using A = Acc<T>;
  if (x_THR.size() == 0) return;
  constexpr int64_t kThreads = 128;
  Tensor position = Upload(ctx, position_T);
  bool halves = form == RopeForm::kRotateHalf;
  int64_t rows = x_THR.rows(), heads = rows / x_THR.dim(0), pairs = x_THR.cols() / 2;
  int64_t pieces = CeilDiv(pairs, Pack<T>::kSize);
  bool aligned = RowsAligned(x_THR, table.cos_PR, table.sin_PR) &&
                 (!halves || pairs % Pack<T>::kSize == 0);  // where the second halves begin
  Launch(ctx, "rope", RopeKernel<T>,
         {static_cast<unsigned>(CeilDiv(rows * pieces, kThreads)), kThreads}, Rows<T>(x_THR),
         position.data<int32_t>(), Rows<A>(table.cos_PR), Rows<A>(table.sin_PR),
         inverse ? A(-1) : A(1), halves, rows, heads, pairs, pieces, aligned);
}

#define HONE_INSTANTIATE(T)                                                                  \
  template void Rope<T>(Context&, const Tensor&, std::span<const int32_t>, const RopeTable&, \
                        RopeForm, bool);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
