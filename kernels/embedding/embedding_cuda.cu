// The backward pass adds up the uses of a token in the order of their positions: they are sorted by
// token on the host, and each element of the table that is used belongs to one thread.
#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/gather.h"
#include "kernels/embedding/embedding_cuda.h"

namespace hone::kernels::cuda {
namespace {

// The positions of use[u] ≤ i < use[u + 1] hold the same token. A thread takes a pack of columns of
// one token.
template <class T>
__global__ void BackwardKernel(Rows<T> dy_TD, const int32_t* token_T, const int32_t* position_T,
                               const int32_t* use_U, int64_t cols, int64_t tiles, bool aligned,
                               Rows<Acc<T>> dtable_VD) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  int64_t u = blockIdx.x / tiles;
  int64_t i = (blockIdx.x % tiles * blockDim.x + threadIdx.x) * kSize;
  if (i >= cols) return;
  int32_t begin = use_U[u], end = use_U[u + 1];
  A* to = dtable_VD[token_T[position_T[begin]]] + i;
  A sum[kSize], v[kSize];
  LoadPacks<kSize>(to, cols - i, aligned, sum);
  for (int32_t n = begin; n < end; ++n) {
    LoadPacks<kSize>(dy_TD[position_T[n]] + i, cols - i, aligned, v);
    for (int j = 0; j < kSize; ++j) sum[j] += v[j];
  }
  StorePacks<kSize>(sum, cols - i, aligned, to);
}

}  // namespace

template <class T>
void Embedding(Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T,
               const Tensor& y_TD) {
  GatherRows<T>(ctx, "embedding", table_VD, token_T, y_TD);
}

template <class T>
void SetRows(Context& ctx, const Tensor& table_VD, std::span<const int32_t> row_T,
             const Tensor& x_TD) {
  GatherRows<T, true>(ctx, "set_rows", x_TD, row_T, table_VD);
}

template <class T>
void EmbeddingBackward(Context& ctx, const Tensor& dy_TD, std::span<const int32_t> token_T,
                       const Tensor& dtable_VD) {
  int64_t cols = dy_TD.cols();
  if (dy_TD.size() == 0) return;
  std::vector<int32_t> position(token_T.size()), use;
  std::iota(position.begin(), position.end(), 0);
  std::stable_sort(position.begin(), position.end(),
                   [&](int32_t a, int32_t b) { return token_T[a] < token_T[b]; });
  for (size_t n = 0; n < position.size(); ++n) {
    if (n == 0 || token_T[position[n]] != token_T[position[n - 1]]) {
      use.push_back(static_cast<int32_t>(n));
    }
  }
  int64_t used = static_cast<int64_t>(use.size());
  use.push_back(static_cast<int32_t>(position.size()));
  Tensor token_ids = Upload(ctx, token_T);
  Tensor positions = Upload(ctx, std::span<const int32_t>(position));
  Tensor uses = Upload(ctx, std::span<const int32_t>(use));
  int64_t threads = ThreadsFor(CeilDiv(cols, Pack<T>::kSize), 128);
  int64_t tiles = CeilDiv(cols, threads * Pack<T>::kSize);
  Launch(ctx, "embedding", BackwardKernel<T>,
         {static_cast<unsigned>(used * tiles), static_cast<unsigned>(threads)}, Rows<T>(dy_TD),
         token_ids.data<int32_t>(), positions.data<int32_t>(), uses.data<int32_t>(), cols, tiles,
         RowsAligned(dy_TD, dtable_VD), Rows<Acc<T>>(dtable_VD));
}

#define HONE_INSTANTIATE(T)                                                                     \
  template void Embedding<T>(Context&, const Tensor&, std::span<const int32_t>, const Tensor&); \
  template void SetRows<T>(Context&, const Tensor&, std::span<const int32_t>, const Tensor&);   \
  template void EmbeddingBackward<T>(Context&, const Tensor&, std::span<const int32_t>,         \
                                     const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
