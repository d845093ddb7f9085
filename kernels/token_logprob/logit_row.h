// The softmax of one row of logits, shared by token_logprob/, cross_entropy/ and sampling/, so that
// a token's log-probability has the same bits wherever it is computed.
//
// z: the row, V its length. Everything is in the accumulation type A (float or double).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/vec_math.h"

namespace hone::kernels {

// z / temperature, from a row of any dtype. The only place where a temperature is applied.
template <class T>
inline void LoadLogits(const T* logits, double temperature, Acc<T>* z, int64_t vocab) {
  if (temperature == 1.0) {
    LoadRow(logits, z, vocab);
    return;
  }
  Acc<T> t = static_cast<Acc<T>>(temperature);
  for (int64_t v = 0; v < vocab; ++v) z[v] = Load(logits[v]) / t;
}

template <class A>
struct RowSoftmax {
  A max;  // the greatest logit
  A sum;  // Σ exp(z − max)
  A lse;  // max + log(sum)
  A Logp(A z) const { return z - lse; }
};

template <class A, class Term>
inline RowSoftmax<A> SoftmaxFrom(A max, int64_t vocab, Term exp_of) {
  A sum = SumOver<A>(vocab, exp_of);
  return {max, sum, max + std::log(sum)};
}
template <class A>
inline RowSoftmax<A> SoftmaxOf(const A* z, int64_t vocab) {
  A max = MaxLanes(z, vocab);
  return SoftmaxFrom(max, vocab, [=](int64_t v) { return Exp(z[v] - max); });
}
// The same bits, and z becomes exp(z − max).
template <class A>
inline RowSoftmax<A> SoftmaxInPlace(A* z, int64_t vocab) {
  A max = MaxLanes(z, vocab);
  return SoftmaxFrom(max, vocab, [=](int64_t v) { return z[v] = Exp(z[v] - max); });
}

// A log-probability whose p is 0 may be −∞; this keeps p · log p from being NaN there.
template <class A>
inline A Bounded(A logp) {
  return logp < A(-1e30) ? A(-1e30) : logp;
}

// −Σ p log p, in nats: log(sum) − Σ exp(z − max)·(z − max) / sum.
template <class A>
inline A EntropyOf(const A* z, int64_t vocab, const RowSoftmax<A>& row) {
  A max = row.max;
  A weighted = SumOver<A>(vocab, [=](int64_t v) { return Exp(z[v] - max) * Bounded(z[v] - max); });
  return std::log(row.sum) - weighted / row.sum;
}

}  // namespace hone::kernels
