// A draw walks the tokens in ascending id and stops where the running sum of exp(z − max), in
// double, passes uniform · total: so a token is a function of its row and its uniform only.
#include "kernels/sampling/sampling_cpu.h"

#include <algorithm>
#include <numeric>

#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels::cpu {
namespace {

// `token(i)` for i in [0, n) are the candidates in ascending id; exp_z: exp(z − max) of every
// token.
template <class A, class Token>
int32_t Draw(const A* exp_z, int64_t n, Token token, double uniform) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += static_cast<double>(exp_z[token(i)]);
  double goal = uniform * total, sum = 0;
  int32_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    double mass = static_cast<double>(exp_z[token(i)]);
    if (mass > 0) last = static_cast<int32_t>(token(i));
    sum += mass;
    if (sum > goal) return last;
  }
  return last;
}

// How many of the likeliest candidates it takes to hold at least top_p of all their probability;
// those are then the first of `order`. Only as many as needed are sorted.
template <class A, class Likelier>
size_t Nucleus(const A* exp_z, double top_p, Likelier likelier, std::vector<int32_t>& order) {
  auto mass = [&](int32_t v) { return static_cast<double>(exp_z[v]); };
  double total = 0;
  for (int32_t v : order) total += mass(v);
  for (size_t sorted = 64;; sorted *= 8) {
    sorted = std::min(sorted, order.size());
    auto end = order.begin() + static_cast<int64_t>(sorted);
    if (end != order.end()) std::nth_element(order.begin(), end, order.end(), likelier);
    std::sort(order.begin(), end, likelier);
    double sum = 0;
    for (size_t kept = 1; kept <= sorted; ++kept) {
      sum += mass(order[kept - 1]);
      if (sum >= top_p * total) return kept;
    }
    if (sorted == order.size()) return sorted;
  }
}

// Keeps the top_k likeliest (ties to the lower id), then the shortest prefix of them that holds at
// least top_p of their probability; in ascending id.
template <class A>
void Restrict(const A* z, const A* exp_z, int64_t vocab, const SamplingParams& p,
              std::vector<int32_t>& order) {
  order.resize(vocab);
  std::iota(order.begin(), order.end(), 0);
  auto likelier = [z](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };
  if (p.top_k > 0 && p.top_k < vocab) {
    std::nth_element(order.begin(), order.begin() + p.top_k, order.end(), likelier);
    order.resize(p.top_k);
    std::sort(order.begin(), order.end());
  }
  if (p.top_p < 1) {
    order.resize(Nucleus(exp_z, p.top_p, likelier, order));
    std::sort(order.begin(), order.end());
  }
}

}  // namespace

template <class T>
SampledToken SampleRow(const T* logits, int64_t vocab, const SamplingParams& params, double uniform,
                       SampleScratch<T>& scratch) {
  using A = Acc<T>;
  bool greedy = params.temperature == 0;
  scratch.z.resize(vocab);
  A* z = scratch.z.data();
  LoadLogits(logits, greedy ? 1.0 : params.temperature, z, vocab);
  scratch.exp_z = scratch.z;
  A* exp_z = scratch.exp_z.data();
  RowSoftmax<A> row = SoftmaxInPlace(exp_z, vocab);
  Check(std::isfinite(row.lse), "[sampling] logits that are NaN or infinite: log-sum-exp is {}",
        row.lse);
  int32_t token;
  if (greedy) {
    token = static_cast<int32_t>(std::find(z, z + vocab, row.max) - z);
  } else if (params.top_p < 1 || (params.top_k > 0 && params.top_k < vocab)) {
    Restrict(z, exp_z, vocab, params, scratch.order);
    auto candidate = [order = scratch.order.data()](int64_t i) { return order[i]; };
    token = Draw(exp_z, static_cast<int64_t>(scratch.order.size()), candidate, uniform);
  } else {
    token = Draw(
        exp_z, vocab, [](int64_t i) { return i; }, uniform);
  }
  return {token, static_cast<float>(row.Logp(z[token]))};
}

template SampledToken SampleRow<float>(const float*, int64_t, const SamplingParams&, double,
                                       SampleScratch<float>&);
template SampledToken SampleRow<double>(const double*, int64_t, const SamplingParams&, double,
                                        SampleScratch<double>&);
template SampledToken SampleRow<BF16>(const BF16*, int64_t, const SamplingParams&, double,
                                      SampleScratch<BF16>&);

}  // namespace hone::kernels::cpu
