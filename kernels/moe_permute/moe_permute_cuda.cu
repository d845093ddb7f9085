#include "kernels/cuda/gather.h"
#include "kernels/moe_permute/moe_permute_cuda.h"

namespace hone::kernels::cuda {
namespace {

constexpr std::string_view kOp = "moe_permute";

// y_t = Σ_k weight[t, k] · rows[row[t, k]], rows in ascending order, which is ascending expert
// order (see moe_permute_cpu.cc).
template <class T>
struct Combine {
  static constexpr int kWidth = Pack<T>::kSize;
  Rows<T> rows, y;
  const int32_t* row_TK;
  Rows<Acc<T>> weight_TK;  // no data: plain sums
  int64_t top_k;

  __device__ void operator()(int64_t t, int64_t i, int64_t count, bool aligned) const {
    using A = Acc<T>;
    A sum[kWidth] = {}, v[kWidth];
    int64_t k = Next(t, -1);
    for (int64_t n = 0; n < top_k; ++n) {
      int32_t row = row_TK[t * top_k + k];
      A weight = weight_TK.data == nullptr ? A(1) : weight_TK[t][k];
      LoadPacks<kWidth>(rows[row] + i, count, aligned, v);
      for (int j = 0; j < kWidth; ++j) sum[j] = Fma(weight, v[j], sum[j]);
      if (n + 1 < top_k) k = Next(t, row);
    }
    StorePacks<kWidth>(sum, count, aligned, y[t] + i);
  }

  // Where token t names the lowest of its rows that are above `row`.
  __device__ int64_t Next(int64_t t, int32_t row) const {
    int64_t next = 0;
    int32_t lowest = INT32_MAX;
    for (int64_t k = 0; k < top_k; ++k) {
      int32_t r = row_TK[t * top_k + k];
      if (r > row && r < lowest) {
        lowest = r;
        next = k;
      }
    }
    return next;
  }
};

// A warp takes one choice (t, k): drows = weight · dy and dweight = dy · rows.
template <class T>
__global__ void BackwardKernel(Rows<T> dy_TD, Rows<T> rows_RD, Rows<Acc<T>> weight_TK,
                               const int32_t* row_TK, int64_t choices, int64_t top_k, int64_t cols,
                               bool aligned, Rows<T> drows_RD, Rows<Acc<T>> dweight_TK) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  int64_t choice = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarpSize) + Warp();
  if (choice >= choices) return;  // a whole warp
  int64_t t = choice / top_k, k = choice % top_k, row = row_TK[choice];
  A weight = weight_TK[t][k], dot = 0;
  ForPacks<kWarpSize, T>(Lane(), cols, [&](int64_t i, int64_t count) {
    A d[kSize], v[kSize];
    LoadPacks<kSize>(dy_TD[t] + i, count, aligned, d);
    LoadPacks<kSize>(rows_RD[row] + i, count, aligned, v);
    for (int j = 0; j < kSize; ++j) {
      dot = Fma(d[j], v[j], dot);
      d[j] *= weight;
    }
    StorePacks<kSize>(d, count, aligned, drows_RD[row] + i);
  });
  dot = WarpSum(dot);
  if (Lane() == 0) dweight_TK[t][k] = dot;
}

}  // namespace

template <class T>
void Permute(Context& ctx, const Tensor& x_TD, const Permutation& permutation,
             const Tensor& rows_RD) {
  GatherRows<T>(ctx, kOp, x_TD, permutation.token_R, rows_RD);
}

template <class T>
void Unpermute(Context& ctx, const Tensor& rows_RD, const Tensor& weight_TK,
               const Permutation& permutation, const Tensor& y_TD) {
  int64_t tokens = y_TD.dim(0);
  if (tokens == 0) return;
  Tensor row_TK = Upload(ctx, std::span<const int32_t>(permutation.row_TK));
  Rows<Acc<T>> weight(weight_TK.defined() ? weight_TK : ctx.Empty({0}, DTypeOf<Acc<T>>::value));
  if (!weight_TK.defined()) weight.data = nullptr;
  ForEachElement(ctx, kOp, false,
                 Combine<T>{Rows<T>(rows_RD), Rows<T>(y_TD), row_TK.data<int32_t>(), weight,
                            row_TK.size() / tokens},
                 y_TD, rows_RD);
}

template <class T>
void UnpermuteBackward(Context& ctx, const Tensor& dy_TD, const Tensor& rows_RD,
                       const Tensor& weight_TK, const Permutation& permutation,
                       const UnpermuteGradients& gradients) {
  constexpr int kWarps = 8;
  int64_t choices = weight_TK.size();
  if (choices == 0) return;
  Tensor row_TK = Upload(ctx, std::span<const int32_t>(permutation.row_TK));
  Launch(ctx, kOp, BackwardKernel<T>,
         {static_cast<unsigned>(CeilDiv(choices, kWarps)), kWarps * kWarpSize}, Rows<T>(dy_TD),
         Rows<T>(rows_RD), Rows<Acc<T>>(weight_TK), row_TK.data<int32_t>(), choices,
         weight_TK.cols(), dy_TD.cols(), RowsAligned(dy_TD, rows_RD, gradients.drows_RD),
         Rows<T>(gradients.drows_RD), Rows<Acc<T>>(gradients.dweight_TK));
}

#define HONE_INSTANTIATE(T)                                                                 \
  template void Permute<T>(Context&, const Tensor&, const Permutation&, const Tensor&);     \
  template void Unpermute<T>(Context&, const Tensor&, const Tensor&, const Permutation&,    \
                             const Tensor&);                                                \
  template void UnpermuteBackward<T>(Context&, const Tensor&, const Tensor&, const Tensor&, \
                                     const Permutation&, const UnpermuteGradients&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
