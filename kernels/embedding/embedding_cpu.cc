#include "kernels/embedding/embedding_cpu.h"

#include <cstring>

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {

template <class T>
void Embedding(Context& ctx, const Tensor& table_VD, std::span<const int32_t> token_T,
               const Tensor& y_TD) {
  Rows<T> table(table_VD), y(y_TD);
  int64_t dim = table_VD.cols();
  ctx.pool().ParallelFor(y_TD.rows(), RowGrain(dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) std::memcpy(y[t], table[token_T[t]], dim * sizeof(T));
  });
}

// Threads take disjoint columns, so each element of the table is added to in token order.
template <class T>
void EmbeddingBackward(Context& ctx, const Tensor& dy_TD, std::span<const int32_t> token_T,
                       const Tensor& dtable_VD) {
  Rows<T> dy(dy_TD);
  Rows<Acc<T>> dtable(dtable_VD);
  int64_t grain = std::max<int64_t>(16, RowGrain(dy_TD.rows()));
  ctx.pool().ParallelFor(dy_TD.cols(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < dy_TD.rows(); ++t) {
      const T* from = dy[t];
      Acc<T>* to = dtable[token_T[t]];
      for (int64_t i = begin; i < end; ++i) to[i] += Load(from[i]);
    }
  });
}

template <class T>
void SetRows(const Tensor& table_VD, std::span<const int32_t> row_T, const Tensor& x_TD) {
  Rows<T> table(table_VD), x(x_TD);
  for (size_t t = 0; t < row_T.size(); ++t) {
    std::memcpy(table[row_T[t]], x[static_cast<int64_t>(t)], x_TD.cols() * sizeof(T));
  }
}

#define HONE_INSTANTIATE(T)                                                                     \
  template void Embedding<T>(Context&, const Tensor&, std::span<const int32_t>, const Tensor&); \
  template void EmbeddingBackward<T>(Context&, const Tensor&, std::span<const int32_t>,         \
                                     const Tensor&);                                            \
  template void SetRows<T>(const Tensor&, std::span<const int32_t>, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
