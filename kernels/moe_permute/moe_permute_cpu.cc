// Within a token, rows with a smaller number belong to a smaller expert: so "ascending expert
// order" is ascending row order, whatever order the router named the experts in.
#include "kernels/moe_permute/moe_permute_cpu.h"

#include <algorithm>
#include <cstring>

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

// A token's (row, k) pairs in ascending row order.
using Choices = std::vector<std::pair<int32_t, int32_t>>;

void SortChoices(const Permutation& p, int64_t token, int64_t top_k, Choices& choices) {
  choices.resize(top_k);
  for (int64_t k = 0; k < top_k; ++k) {
    choices[k] = {p.row_TK[token * top_k + k], static_cast<int32_t>(k)};
  }
  std::sort(choices.begin(), choices.end());
}

int64_t TopK(const Permutation& p, int64_t tokens) {
  return tokens == 0 ? 0 : static_cast<int64_t>(p.row_TK.size()) / tokens;
}

}  // namespace

template <class T>
void Permute(Context& ctx, const Tensor& x_TD, const Permutation& permutation,
             const Tensor& rows_RD) {
  Rows<T> x(x_TD), rows(rows_RD);
  int64_t dim = x_TD.cols();
  ctx.pool().ParallelFor(rows_RD.rows(), RowGrain(dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(rows[r], x[permutation.token_R[r]], dim * sizeof(T));
    }
  });
}

template <class T>
void Unpermute(Context& ctx, const Tensor& rows_RD, const Tensor& weight_TK,
               const Permutation& permutation, const Tensor& y_TD) {
  using A = Acc<T>;
  Rows<T> rows(rows_RD), y(y_TD);
  int64_t tokens = y_TD.dim(0), dim = y_TD.cols(), top_k = TopK(permutation, tokens);
  bool weighted = weight_TK.defined();
  ctx.pool().ParallelFor(tokens, RowGrain(dim * top_k), [&](int64_t begin, int64_t end) {
    Choices choices;
    std::vector<A> sum(dim);
    for (int64_t t = begin; t < end; ++t) {
      SortChoices(permutation, t, top_k, choices);
      std::fill(sum.begin(), sum.end(), A(0));
      for (auto [r, k] : choices) {
        A weight = weighted ? weight_TK.row<A>(t)[k] : A(1);
        const T* row = rows[r];
        for (int64_t i = 0; i < dim; ++i) sum[i] = Fma(weight, Load(row[i]), sum[i]);
      }
      T* out = y[t];
      for (int64_t i = 0; i < dim; ++i) out[i] = Store<T>(sum[i]);
    }
  });
}

template <class T>
void UnpermuteBackward(Context& ctx, const Tensor& dy_TD, const Tensor& rows_RD,
                       const Tensor& weight_TK, const Permutation& permutation,
                       const UnpermuteGradients& gradients) {
  using A = Acc<T>;
  Rows<T> dy(dy_TD), rows(rows_RD), drows(gradients.drows_RD);
  Rows<A> weight(weight_TK), dweight(gradients.dweight_TK);
  int64_t tokens = dy_TD.dim(0), dim = dy_TD.cols(), top_k = weight_TK.cols();
  ctx.pool().ParallelFor(tokens, RowGrain(dim * top_k), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const T* d = dy[t];
      for (int64_t k = 0; k < top_k; ++k) {
        int32_t r = permutation.row_TK[t * top_k + k];
        const T* row = rows[r];
        T* drow = drows[r];
        A w = weight[t][k];
        dweight[t][k] = Dot(d, row, dim);
        for (int64_t i = 0; i < dim; ++i) drow[i] = Store<T>(w * Load(d[i]));
      }
    }
  });
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

}  // namespace hone::kernels::cpu
