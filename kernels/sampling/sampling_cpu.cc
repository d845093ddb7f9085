// A draw walks the tokens in ascending id and stops where the running mass passes uniform · total:
// so a token is a function of its row and its uniform only.
//
// Mass is exp(z − max) as an integer, in units of 2^−40 and rounded down: sums of it are exact,
// hence the same in any order, and every device draws the same token from the same logits. A token
// less likely than 2^−40 of the likeliest is never drawn. 2^23 tokens do not overflow.
#include "kernels/sampling/sampling_cpu.h"

#include <algorithm>
#include <numeric>

#include "kernels/dispatch.h"
#include "kernels/token_logprob/logit_row.h"

namespace hone::kernels::cpu {
namespace {

uint64_t MassOf(double exp_z) { return static_cast<uint64_t>(exp_z * 0x1p40); }

// The draw takes the first token whose running mass is greater than this.
uint64_t DrawGoal(double uniform, uint64_t total) {
  uint64_t goal = static_cast<uint64_t>(uniform * static_cast<double>(total));
  return std::min(goal, total - 1);
}

// The least mass that a nucleus of share top_p must hold: at least 1.
uint64_t NucleusMass(double top_p, uint64_t total) {
  double wanted = top_p * static_cast<double>(total);
  uint64_t least = static_cast<uint64_t>(wanted);
  if (static_cast<double>(least) < wanted || least == 0) ++least;
  return std::min(least, total);
}

// `token(i)` for i in [0, n) are the candidates in ascending id; exp_z: exp(z − max) of every
// token.
template <class A, class Token>
int32_t Draw(const A* exp_z, int64_t n, Token token, double uniform) {
  uint64_t total = 0, sum = 0;
  for (int64_t i = 0; i < n; ++i) total += MassOf(exp_z[token(i)]);
  uint64_t goal = DrawGoal(uniform, total);
  for (int64_t i = 0; i < n; ++i) {
    sum += MassOf(exp_z[token(i)]);
    if (sum > goal) return static_cast<int32_t>(token(i));
  }
  return -1;
}

// How many of the likeliest candidates it takes to hold at least top_p of all their probability;
// those are then the first of `order`. Only as many as needed are sorted.
template <class A, class Likelier>
size_t Nucleus(const A* exp_z, double top_p, Likelier likelier, std::vector<int32_t>& order) {
  uint64_t total = 0;
  for (int32_t v : order) total += MassOf(exp_z[v]);
  uint64_t wanted = NucleusMass(top_p, total);
  for (size_t sorted = 64;; sorted *= 8) {
    sorted = std::min(sorted, order.size());
    auto end = order.begin() + static_cast<int64_t>(sorted);
    if (end != order.end()) std::nth_element(order.begin(), end, order.end(), likelier);
    std::sort(order.begin(), end, likelier);
    uint64_t sum = 0;
    for (size_t kept = 1; kept <= sorted; ++kept) {
      sum += MassOf(exp_z[order[kept - 1]]);
      if (sum >= wanted) return kept;
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

// What a worker needs for a row, reused between rows.
template <class T>
struct SampleScratch {
  std::vector<Acc<T>> z, exp_z;
  std::vector<int32_t> order;
};

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

}  // namespace

template <class T>
void Sample(Context& ctx, const Tensor& logits_BV, std::span<const SamplingParams> params_B,
            std::span<const double> uniform_B, std::vector<SampledToken>& out) {
  Rows<T> logits(logits_BV);
  int64_t vocab = logits_BV.cols();
  ctx.pool().ParallelFor(logits_BV.rows(), RowGrain(vocab), [&](int64_t begin, int64_t end) {
    SampleScratch<T> scratch;
    for (int64_t b = begin; b < end; ++b) {
      out[b] = SampleRow<T>(logits[b], vocab, params_B[b], uniform_B[b], scratch);
    }
  });
}

#define HONE_INSTANTIATE(T)                                                         \
  template void Sample<T>(Context&, const Tensor&, std::span<const SamplingParams>, \
                          std::span<const double>, std::vector<SampledToken>&);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
HONE_INSTANTIATE(BF16)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
