// The softmax of one row of logits, shared by token_logprob/, cross_entropy/ and sampling/ on CUDA,
// so that a token's log-probability has the same bits wherever it is computed. See logit_row.h.
//
// A block of kLogitThreads takes a row. z: a logit over the temperature, in the accumulation type
// A.
#pragma once

#include "kernels/cuda/row_math.h"

namespace hone::kernels::cuda {

inline constexpr int kLogitThreads = 512;
inline constexpr int kLogitsAtOnce = 8;  // of a thread; one number for all dtypes, so that bf16
                                         // logits and their f32 copies are summed in one order

template <class T>
struct LogitRow {
  using A = Acc<T>;
  const T* logits;
  int64_t vocab;
  A temperature;
  bool aligned;

  // The only place where a temperature is applied.
  __device__ A At(int64_t v) const { return Scaled(Load(logits[v])); }
  __device__ A Scaled(A logit) const { return temperature == A(1) ? logit : logit / temperature; }
  // Calls fn(v, z) for this thread's share of the row.
  template <class Fn>
  __device__ void ForEach(Fn fn) const {
    const int64_t first = int64_t{threadIdx.x} * kLogitsAtOnce;
    for (int64_t v = first; v < vocab; v += kLogitThreads * kLogitsAtOnce) {
      const int64_t left = vocab - v, count = left < kLogitsAtOnce ? left : kLogitsAtOnce;
      A z[kLogitsAtOnce];
      LoadPacks<kLogitsAtOnce>(logits + v, count, aligned, z);
      for (int j = 0; j < count; ++j) fn(v + j, Scaled(z[j]));
    }
  }
};

template <class A>
struct RowSoftmax {
  A max;  // the greatest z
  A sum;  // Σ exp(z − max)
  A lse;  // max + log(sum)
  __device__ A Logp(A z) const { return z - lse; }
};

// A log-probability whose p is 0 may be −∞; this keeps p · log p from being NaN there.
template <class A>
__device__ __forceinline__ A Bounded(A logp) {
  return logp < A(-1e30) ? A(-1e30) : logp;
}

// The whole block calls and gets the result.
template <class T>
__device__ RowSoftmax<Acc<T>> SoftmaxOf(const LogitRow<T>& row) {
  using A = Acc<T>;
  A max = -Infinity<A>(), sum = 0;
  row.ForEach([&](int64_t, A z) { max = Max{}(max, z); });
  max = BlockReduce(max, Max{}, -Infinity<A>());
  row.ForEach([&](int64_t, A z) { sum += Exp(z - max); });
  sum = BlockSum(sum);
  return {max, sum, max + Log(sum)};
}

}  // namespace hone::kernels::cuda
