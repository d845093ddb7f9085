// A token at a time.
#include "kernels/router/router_cpu.h"

#include <algorithm>
#include <limits>

#include "kernels/dispatch.h"
#include "kernels/vec_math.h"

namespace hone::kernels::cpu {
namespace {

using Kind = RouterConfig::Kind;

// Keeps a sum of scores that all underflowed from dividing by zero, as transformers does.
constexpr double kTiny = 1e-20;

template <class A>
void Scores(const A* logits, Kind kind, int64_t experts, A* score) {
  if (kind == Kind::kSigmoidGroups) {
    for (int64_t e = 0; e < experts; ++e) score[e] = A(1) / (A(1) + Exp(-logits[e]));
    return;
  }
  A max = MaxLanes(logits, experts);
  for (int64_t e = 0; e < experts; ++e) score[e] = Exp(logits[e] - max);
  A sum = SumLanes(score, experts);
  for (int64_t e = 0; e < experts; ++e) score[e] /= sum;
}

// The `count` largest values, ties to the lower index; written in ascending index order. One pass
// keeps the best so far in descending order: a later value goes behind its equals.
template <class A>
void TopIndices(const A* value, int64_t n, int64_t count, int32_t* index) {
  int64_t held = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (held == count && !(value[i] > value[index[held - 1]])) continue;
    int64_t place = held < count ? held++ : held - 1;
    for (; place > 0 && value[i] > value[index[place - 1]]; --place)
      index[place] = index[place - 1];
    index[place] = static_cast<int32_t>(i);
  }
  std::sort(index, index + count);
}

template <class A>
A TwoBest(const A* choice, int64_t size) {
  A first = choice[0], second = -std::numeric_limits<A>::infinity();
  for (int64_t i = 1; i < size; ++i) {
    second = std::max(second, std::min(first, choice[i]));
    first = std::max(first, choice[i]);
  }
  return size == 1 ? first : first + second;
}

// What experts are chosen by: s + b, with −∞ in the groups that were not selected.
template <class A>
void GroupLimited(const A* score, const float* bias, const RouterConfig& c,
                  std::vector<A>& choice) {
  choice.resize(c.experts);
  for (int64_t e = 0; e < c.experts; ++e) choice[e] = score[e] + (bias ? A(bias[e]) : A(0));
  if (c.groups == c.top_groups) return;
  int64_t size = c.experts / c.groups;
  std::vector<A> group_score(c.groups);
  for (int64_t g = 0; g < c.groups; ++g) group_score[g] = TwoBest(choice.data() + g * size, size);
  std::vector<int32_t> kept(c.top_groups);
  TopIndices(group_score.data(), c.groups, c.top_groups, kept.data());
  for (int64_t g = 0; g < c.groups; ++g) {
    if (std::binary_search(kept.begin(), kept.end(), static_cast<int32_t>(g))) continue;
    std::fill_n(choice.begin() + g * size, size, -std::numeric_limits<A>::infinity());
  }
}

// Σ of the chosen scores; what weights are divided by.
template <class A>
A ChosenSum(const A* score, const int32_t* index, int64_t top_k) {
  A sum = A(0);
  for (int64_t k = 0; k < top_k; ++k) sum += score[index[k]];
  return sum + A(kTiny);
}

}  // namespace

template <class A>
void Route(Context& ctx, const Tensor& logits_TE, const Tensor* bias_E, const RouterConfig& config,
           bool replay, Routing& routing) {
  Rows<A> logits(logits_TE), score(routing.score_TE), weight(routing.weight_TK);
  const float* bias = bias_E ? bias_E->data<float>() : nullptr;
  int64_t experts = config.experts, top_k = config.top_k;
  ctx.pool().ParallelFor(logits_TE.dim(0), RowGrain(experts, 1024),
                         [&](int64_t begin, int64_t end) {
                           std::vector<A> choice;
                           for (int64_t t = begin; t < end; ++t) {
                             A* s = score[t];
                             int32_t* index = routing.index_TK.data() + t * top_k;
                             Scores(logits[t], config.kind, experts, s);
                             if (!replay && config.kind == Kind::kSigmoidGroups) {
                               GroupLimited(s, bias, config, choice);
                               TopIndices(choice.data(), experts, top_k, index);
                             } else if (!replay) {
                               TopIndices(s, experts, top_k, index);
                             }
                             A factor = A(config.scale);
                             if (config.normalize) factor /= ChosenSum(s, index, top_k);
                             for (int64_t k = 0; k < top_k; ++k)
                               weight[t][k] = s[index[k]] * factor;
                           }
                         });
}

// Normalised: w_k = scale · s_k / D, D = Σ s, so ds_k = scale / D · (g_k − Σ_j g_j s_j / D).
template <class A>
void RouteBackward(Context& ctx, const Tensor& dweight_TK, const Tensor* dscore_TE,
                   const Routing& routing, const RouterConfig& config, const Tensor& dlogits_TE) {
  Rows<A> dweight(dweight_TK), score(routing.score_TE), dlogits(dlogits_TE);
  int64_t experts = config.experts, top_k = config.top_k;
  ctx.pool().ParallelFor(dlogits_TE.dim(0), RowGrain(experts, 1024),
                         [&](int64_t begin, int64_t end) {
                           for (int64_t t = begin; t < end; ++t) {
                             const A *s = score[t], *g = dweight[t];
                             const int32_t* index = routing.index_TK.data() + t * top_k;
                             A* d = dlogits[t];
                             if (dscore_TE) {
                               std::copy_n(dscore_TE->row<A>(t), experts, d);
                             } else {
                               std::fill_n(d, experts, A(0));
                             }
                             A factor = A(config.scale), shift = A(0);
                             if (config.normalize) {
                               A sum = ChosenSum(s, index, top_k);
                               for (int64_t k = 0; k < top_k; ++k) shift += g[k] * s[index[k]];
                               shift /= sum;
                               factor /= sum;
                             }
                             for (int64_t k = 0; k < top_k; ++k)
                               d[index[k]] += factor * (g[k] - shift);
                             if (config.kind == Kind::kSigmoidGroups) {
                               for (int64_t e = 0; e < experts; ++e) d[e] *= s[e] * (A(1) - s[e]);
                             } else {
                               A mean = Dot(d, s, experts);
                               for (int64_t e = 0; e < experts; ++e) d[e] = s[e] * (d[e] - mean);
                             }
                           }
                         });
}

// Σ_e f_e P_e = mean_t Σ_e f_e s'_te, and d/ds_te = (f_e − Σ_j f_j s'_tj) / (T_s · Σ_j s_tj).
template <class A>
double SequenceBalance(Context& ctx, const Routing& routing, int64_t begin, int64_t end,
                       double weight, const RouterConfig& config, const Tensor* dscore_TE) {
  int64_t experts = config.experts, top_k = config.top_k, tokens = end - begin;
  if (tokens == 0) return 0;
  std::vector<A> f(experts, A(0));
  for (int64_t i = begin * top_k; i < end * top_k; ++i) f[routing.index_TK[i]] += A(1);
  for (A& v : f) v *= static_cast<A>(experts) / static_cast<A>(top_k * tokens);
  Rows<A> score(routing.score_TE);
  std::vector<double> token_loss(tokens);
  A factor = static_cast<A>(weight / static_cast<double>(tokens));
  ctx.pool().ParallelFor(tokens, RowGrain(experts, 4096), [&](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const A* s = score[begin + t];
      A sum = SumLanes(s, experts) + A(kTiny);
      A mean = Dot(s, f.data(), experts) / sum;
      token_loss[t] = mean;
      if (!dscore_TE) continue;
      A* d = dscore_TE->row<A>(begin + t);
      for (int64_t e = 0; e < experts; ++e) d[e] += factor / sum * (f[e] - mean);
    }
  });
  double total = 0;
  for (double v : token_loss) total += v;
  return weight * total / static_cast<double>(tokens);
}

#define HONE_INSTANTIATE(A)                                                                 \
  template void Route<A>(Context&, const Tensor&, const Tensor*, const RouterConfig&, bool, \
                         Routing&);                                                         \
  template void RouteBackward<A>(Context&, const Tensor&, const Tensor*, const Routing&,    \
                                 const RouterConfig&, const Tensor&);                       \
  template double SequenceBalance<A>(Context&, const Routing&, int64_t, int64_t, double,    \
                                     const RouterConfig&, const Tensor*);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cpu
