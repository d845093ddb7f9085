#include <vector>

#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "kernels/token_logprob/logit_row_cuda.h"

namespace hone::kernels::cuda {
namespace {

// Row b of the block belongs to token token_B[b]. d(−w·logp)/dz_v = w · (p_v − [v = target]), with
// p_v = exp(z_v − max) / sum; it replaces the logits.
template <class T>
__global__ void CrossEntropyKernel(Rows<T> logits_BV, int64_t vocab, bool aligned,
                                   const int32_t* token_B, const int32_t* target_B,
                                   const float* weight_B, Acc<T>* logp_T) {
  using A = Acc<T>;
  constexpr int kSize = Pack<T>::kSize;
  LogitRow<T> row{logits_BV[blockIdx.x], vocab, A(1), aligned};
  RowSoftmax<A> softmax = SoftmaxOf(row);
  int32_t target = target_B[blockIdx.x];
  if (threadIdx.x == 0) logp_T[token_B[blockIdx.x]] = softmax.Logp(row.At(target));
  if (weight_B == nullptr) return;  // all threads: no gradient is wanted
  __syncthreads();                  // the target's logit has been read
  A weight = static_cast<A>(weight_B[blockIdx.x]), scale = weight / softmax.sum;
  ForPacks<kLogitThreads, T>(static_cast<int>(threadIdx.x), vocab, [&](int64_t v, int64_t count) {
    A z[kSize];
    LoadPacks<kSize>(row.logits + v, count, aligned, z);
    for (int j = 0; j < kSize; ++j) {
      A e = Exp(z[j] - softmax.max);
      z[j] = v + j == target ? Fma(e, scale, -weight) : e * scale;
    }
    StorePacks<kSize>(z, count, aligned, logits_BV[blockIdx.x] + v);
  });
}

}  // namespace

template <class T>
void CrossEntropyBlock(Context& ctx, const Tensor& logits_BV, std::span<const int32_t> row_B,
                       std::span<const int32_t> target_T, std::span<const float> weight_T,
                       bool gradient, const Tensor& logp_T) {
  std::vector<int32_t> target;
  std::vector<float> weight;
  for (int32_t t : row_B) {
    target.push_back(target_T[t]);
    weight.push_back(weight_T[t]);
  }
  Tensor token_B = Upload(ctx, row_B), target_B = Upload(ctx, std::span<const int32_t>(target));
  Tensor weight_B = Upload(ctx, std::span<const float>(weight));
  Launch(ctx, "cross_entropy", CrossEntropyKernel<T>,
         {static_cast<unsigned>(logits_BV.rows()), kLogitThreads}, Rows<T>(logits_BV),
         logits_BV.cols(), RowsAligned(logits_BV), token_B.data<int32_t>(),
         target_B.data<int32_t>(), gradient ? weight_B.data<float>() : nullptr,
         logp_T.data<Acc<T>>());
}

#define HONE_INSTANTIATE(T)                                                                  \
  template void CrossEntropyBlock<T>(Context&, const Tensor&, std::span<const int32_t>,      \
                                     std::span<const int32_t>, std::span<const float>, bool, \
                                     const Tensor&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
