#include <vector>

#include "kernels/token_logprob/logit_row_cuda.h"
#include "kernels/token_logprob/token_logprob_cuda.h"

namespace hone::kernels::cuda {
namespace {

constexpr std::string_view kOp = "token_logprob";

template <class A>
struct Results {
  A *logp_T, *entropy_T, *lse_T;  // entropy may be null
  explicit Results(const TokenLogprobResult& r)
      : logp_T(r.logp_T.data<A>()),
        entropy_T(r.entropy_T.defined() ? r.entropy_T.data<A>() : nullptr),
        lse_T(r.lse_T.data<A>()) {}
};

// −Σ p log p = log(sum) − Σ exp(z − max)·(z − max) / sum.
template <class T>
__device__ Acc<T> EntropyOf(const LogitRow<T>& row, const RowSoftmax<Acc<T>>& softmax) {
  using A = Acc<T>;
  A weighted = 0;
  row.ForEach([&](int64_t, A z) { weighted += Exp(z - softmax.max) * Bounded(z - softmax.max); });
  return Log(softmax.sum) - BlockSum(weighted) / softmax.sum;
}

// Row b of the block belongs to token token_B[b], whose target is target_B[b].
template <class T>
__global__ void LogprobKernel(Rows<T> logits_BV, int64_t vocab, Acc<T> temperature, bool aligned,
                              const int32_t* token_B, const int32_t* target_B,
                              Results<Acc<T>> results) {
  LogitRow<T> row{logits_BV[blockIdx.x], vocab, temperature, aligned};
  RowSoftmax<Acc<T>> softmax = SoftmaxOf(row);
  int32_t t = token_B[blockIdx.x];
  if (threadIdx.x == 0) {
    results.lse_T[t] = softmax.lse;
    results.logp_T[t] = softmax.Logp(row.At(target_B[blockIdx.x]));
  }
  if (results.entropy_T == nullptr) return;  // all threads
  Acc<T> entropy = EntropyOf(row, softmax);
  if (threadIdx.x == 0) results.entropy_T[t] = entropy;
}

// With p = softmax(z), z = logits / temperature and H the entropy:
//   d logp / dz_v = [v = target] − p_v,   dH / dz_v = −p_v (log p_v + H)
// Each thread overwrites the logits that it alone reads.
template <class T>
__global__ void GradientKernel(Rows<T> logits_BV, int64_t vocab, Acc<T> temperature, bool aligned,
                               const int32_t* token_B, const int32_t* target_B,
                               Results<Acc<T>> saved, const Acc<T>* dlogp_T,
                               const Acc<T>* dentropy_T) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  LogitRow<T> row{logits_BV[blockIdx.x], vocab, temperature, aligned};
  int32_t t = token_B[blockIdx.x], target = target_B[blockIdx.x];
  A lse = saved.lse_T[t], dlogp = dlogp_T[t], per_logit = A(1) / temperature;
  A dentropy = dentropy_T != nullptr ? dentropy_T[t] : A(0);
  A base = dentropy == A(0) ? dlogp : Fma(dentropy, saved.entropy_T[t], dlogp);
  ForPacks<kLogitThreads, T>(static_cast<int>(threadIdx.x), vocab, [&](int64_t v, int64_t count) {
    A z[kSize];
    LoadPacks<kSize>(row.logits + v, count, aligned, z);
    for (int j = 0; j < kSize; ++j) {
      A logp = Bounded(row.Scaled(z[j]) - lse);
      A factor = dentropy == A(0) ? base : Fma(dentropy, logp, base);
      A slope = -Exp(logp) * factor;
      z[j] = (v + j == target ? slope + dlogp : slope) * per_logit;
    }
    StorePacks<kSize>(z, count, aligned, logits_BV[blockIdx.x] + v);
  });
}

// What the kernels need of a block's rows, on the device.
struct BlockRows {
  Tensor token_B, target_B;
  BlockRows(Context& ctx, std::span<const int32_t> row_B, std::span<const int32_t> target_T)
      : token_B(Upload(ctx, row_B)) {
    std::vector<int32_t> target;
    for (int32_t t : row_B) target.push_back(target_T[t]);
    target_B = Upload(ctx, std::span<const int32_t>(target));
  }
};

Blocks BlockEach(const Tensor& logits_BV) {
  return {static_cast<unsigned>(logits_BV.rows()), kLogitThreads};
}

}  // namespace

template <class T>
void LogprobBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                  std::span<const int32_t> target_T, double temperature,
                  const TokenLogprobResult& result) {
  using A = Acc<T>;
  BlockRows rows(ctx, row_B, target_T);
  Launch(ctx, kOp, LogprobKernel<T>, BlockEach(logits_BV), Rows<T>(logits_BV), logits_BV.cols(),
         static_cast<A>(temperature), RowsAligned(logits_BV), rows.token_B.data<int32_t>(),
         rows.target_B.data<int32_t>(), Results<A>(result));
}

template <class T>
void LogprobGradientBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                          std::span<const int32_t> target_T, double temperature,
                          const TokenLogprobResult& saved, const Tensor& dlogp_T,
                          const Tensor& dentropy_T) {
  using A = Acc<T>;
  BlockRows rows(ctx, row_B, target_T);
  Launch(ctx, kOp, GradientKernel<T>, BlockEach(logits_BV), Rows<T>(logits_BV), logits_BV.cols(),
         static_cast<A>(temperature), RowsAligned(logits_BV), rows.token_B.data<int32_t>(),
         rows.target_B.data<int32_t>(), Results<A>(saved), dlogp_T.data<A>(),
         dentropy_T.defined() ? dentropy_T.data<A>() : nullptr);
}

#define HONE_INSTANTIATE(T)                                                                   \
  template void LogprobBlock<T>(Context&, const Tensor&, std::span<const int32_t>,            \
                                std::span<const int32_t>, double, const TokenLogprobResult&); \
  template void LogprobGradientBlock<T>(Context&, const Tensor&, std::span<const int32_t>,    \
                                        std::span<const int32_t>, double,                     \
                                        const TokenLogprobResult&, const Tensor&, const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
