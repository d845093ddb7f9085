// A draw walks the tokens in ascending id and stops where the running sum of exp(z − max), in
// double, passes uniform · total: so a token is a function of its row and its uniform only.
#include "kernels/sampling/sampling_cpu.h"

#include <algorithm>
#include <numeric>

#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels::cpu {
namespace {

template <class A>
int32_t Greedy(const A* z, int64_t vocab) {
  A max = MaxLanes(z, vocab);
  return static_cast<int32_t>(std::find(z, z + vocab, max) - z);
}

// `token(i)` for i in [0, n) are the candidates in ascending id.
template <class A, class Token>
int32_t Draw(const A* z, A max, int64_t n, Token token, double uniform) {
  auto mass = [&](int64_t i) { return static_cast<double>(Exp(z[token(i)] - max)); };
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += mass(i);
  double goal = uniform * total, sum = 0;
  int32_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    double m = mass(i);
    if (m > 0) last = static_cast<int32_t>(token(i));
    sum += m;
    if (sum > goal) return last;
  }
  return last;
}

// Keeps the top_k likeliest (ties to the lower id), then the shortest prefix of them that holds at
// least top_p of their probability; in ascending id.
template <class A>
void Restrict(const A* z, A max, int64_t vocab, const SamplingParams& p,
              std::vector<int32_t>& order) {
  order.resize(vocab);
  std::iota(order.begin(), order.end(), 0);
  auto likelier = [z](int32_t a, int32_t b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };
  if (p.top_k > 0 && p.top_k < vocab) {
    std::nth_element(order.begin(), order.begin() + p.top_k, order.end(), likelier);
    order.resize(p.top_k);
  }
  if (p.top_p < 1) {
    std::sort(order.begin(), order.end(), likelier);
    double total = 0, sum = 0;
    for (int32_t v : order) total += static_cast<double>(Exp(z[v] - max));
    size_t kept = 0;
    while (kept < order.size() && (kept == 0 || sum < p.top_p * total)) {
      sum += static_cast<double>(Exp(z[order[kept++]] - max));
    }
    order.resize(kept);
  }
  std::sort(order.begin(), order.end());
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
  RowSoftmax<A> row = SoftmaxOf(z, vocab);
  Check(std::isfinite(row.lse), "[sampling] logits that are NaN or infinite: log-sum-exp is {}",
        row.lse);
  int32_t token;
  if (greedy) {
    token = Greedy(z, vocab);
  } else if (params.top_p < 1 || (params.top_k > 0 && params.top_k < vocab)) {
    Restrict(z, row.max, vocab, params, scratch.order);
    const int32_t* order = scratch.order.data();
    token = Draw(
        z, row.max, static_cast<int64_t>(scratch.order.size()),
        [order](int64_t i) { return order[i]; }, uniform);
  } else {
    token = Draw(
        z, row.max, vocab, [](int64_t i) { return i; }, uniform);
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
