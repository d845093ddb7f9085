// A warp takes a token; lane l looks after experts l, l + 32, …
#include <algorithm>
#include <vector>

#include "kernels/cuda/row_math.h"
#include "kernels/router/router_cuda.h"

namespace hone::kernels::cuda {
namespace {

using Kind = RouterConfig::Kind;

constexpr std::string_view kOp = "router";
constexpr int kWarps = 4;
constexpr double kTiny = 1e-20;  // as in router_cpu.cc

Blocks WarpEach(int64_t tokens, int64_t shared_bytes = 0) {
  return {static_cast<unsigned>(CeilDiv(tokens, kWarps)), kWarps * kWarpSize, shared_bytes};
}

// The token that this warp works on.
__device__ int64_t Token() { return static_cast<int64_t>(blockIdx.x) * kWarps + Warp(); }

// A warp's shared memory: what experts and groups are chosen by, and which of them are chosen.
template <class A>
struct Choice {
  A *expert, *group;
  unsigned char *expert_chosen, *group_chosen;

  __host__ __device__ static int64_t Bytes(int64_t experts, int64_t groups) {
    int64_t bytes = (experts + groups) * static_cast<int64_t>(sizeof(A) + 1);
    return (bytes + 15) / 16 * 16;
  }
  __device__ Choice(unsigned char* memory, int64_t experts, int64_t groups)
      : expert(reinterpret_cast<A*>(memory)),
        group(expert + experts),
        expert_chosen(reinterpret_cast<unsigned char*>(group + groups)),
        group_chosen(expert_chosen + experts) {}
};

template <class A>
__device__ void Scores(const A* logits, Kind kind, int64_t experts, A* score) {
  if (kind == Kind::kSigmoidGroups) {
    for (int64_t e = Lane(); e < experts; e += kWarpSize)
      score[e] = A(1) / (A(1) + Exp(-logits[e]));
    return;
  }
  A max = -Infinity<A>(), sum = 0;
  for (int64_t e = Lane(); e < experts; e += kWarpSize) max = Max{}(max, logits[e]);
  max = WarpMax(max);
  for (int64_t e = Lane(); e < experts; e += kWarpSize) sum += Exp(logits[e] - max);
  sum = WarpSum(sum);
  for (int64_t e = Lane(); e < experts; e += kWarpSize) score[e] = Exp(logits[e] - max) / sum;
}

// Marks the `count` largest of n values, ties to the lower index. All lanes call; they see the
// marks when it returns.
template <class A>
__device__ void MarkTop(const A* value, int64_t n, int64_t count, unsigned char* chosen) {
  for (int64_t i = Lane(); i < n; i += kWarpSize) chosen[i] = 0;
  __syncwarp();
  constexpr int kNone = INT32_MAX;
  for (int64_t c = 0; c < count; ++c) {
    A best = -Infinity<A>();
    int index = kNone;
    for (int64_t i = Lane(); i < n; i += kWarpSize) {
      if (!chosen[i] && (index == kNone || value[i] > best)) {
        best = value[i];
        index = static_cast<int>(i);
      }
    }
    for (int step = 1; step < kWarpSize; step *= 2) {
      A other = __shfl_xor_sync(kAllLanes, best, step);
      int other_index = __shfl_xor_sync(kAllLanes, index, step);
      bool better = index == kNone || other > best || (!(best > other) && other_index < index);
      if (other_index != kNone && better) {
        best = other;
        index = other_index;
      }
    }
    if (index == kNone) return;  // NaN among the values; the same in all lanes
    if (Lane() == 0) chosen[index] = 1;
    __syncwarp();
  }
}

template <class A>
__device__ A TwoBest(const A* choice, int64_t size) {
  A first = choice[0], second = -Infinity<A>();
  for (int64_t i = 1; i < size; ++i) {
    A c = choice[i], lower = c < first ? c : first;
    second = lower > second ? lower : second;
    first = c > first ? c : first;
  }
  return size == 1 ? first : first + second;
}

// s + b, with −∞ in the groups that were not selected.
template <class A>
__device__ void GroupLimited(const A* score, const float* bias, int64_t experts, int64_t groups,
                             int64_t top_groups, const Choice<A>& choice) {
  for (int64_t e = Lane(); e < experts; e += kWarpSize) {
    choice.expert[e] = score[e] + (bias != nullptr ? A(bias[e]) : A(0));
  }
  __syncwarp();
  if (groups == top_groups) return;
  int64_t size = experts / groups;
  for (int64_t g = Lane(); g < groups; g += kWarpSize) {
    choice.group[g] = TwoBest(choice.expert + g * size, size);
  }
  __syncwarp();
  MarkTop(choice.group, groups, top_groups, choice.group_chosen);
  for (int64_t e = Lane(); e < experts; e += kWarpSize) {
    if (!choice.group_chosen[e / size]) choice.expert[e] = -Infinity<A>();
  }
  __syncwarp();
}

// The marked experts in ascending order.
__device__ void ListChosen(const unsigned char* chosen, int64_t experts, int32_t* index) {
  int64_t before = 0;
  for (int64_t first = 0; first < experts; first += kWarpSize) {
    int64_t e = first + Lane();
    bool mine = e < experts && chosen[e];
    unsigned votes = __ballot_sync(kAllLanes, mine);
    unsigned lower = votes & ((1u << Lane()) - 1u);
    if (mine) index[before + __popc(lower)] = static_cast<int32_t>(e);
    before += __popc(votes);
  }
  __syncwarp();
}

// Σ of the chosen scores, in ascending expert order; what weights are divided by.
template <class A>
__device__ A ChosenSum(const A* score, const int32_t* index, int64_t top_k) {
  A sum = 0;
  for (int64_t k = 0; k < top_k; ++k) sum += score[index[k]];
  return sum + A(kTiny);
}

template <class A>
__global__ void RouteKernel(Rows<A> logits_TE, const float* bias, RouterConfig config, bool replay,
                            int64_t tokens, Rows<A> score_TE, Rows<A> weight_TK,
                            int32_t* index_TK) {
  int64_t t = Token(), experts = config.experts, top_k = config.top_k;
  if (t >= tokens) return;  // a whole warp
  Choice<A> choice(
      DynamicShared<unsigned char>() + Warp() * Choice<A>::Bytes(experts, config.groups), experts,
      config.groups);
  A* score = score_TE[t];
  int32_t* index = index_TK + t * top_k;
  Scores(logits_TE[t], config.kind, experts, score);
  __syncwarp();
  if (!replay) {
    const A* value = score;
    if (config.kind == Kind::kSigmoidGroups) {
      GroupLimited(score, bias, experts, config.groups, config.top_groups, choice);
      value = choice.expert;
    }
    MarkTop(value, experts, top_k, choice.expert_chosen);
    ListChosen(choice.expert_chosen, experts, index);
  }
  A factor = static_cast<A>(config.scale);
  if (config.normalize) factor /= ChosenSum(score, index, top_k);
  for (int64_t k = Lane(); k < top_k; k += kWarpSize) weight_TK[t][k] = score[index[k]] * factor;
}

// See router_cpu.cc: ds_k = scale / D · (g_k − Σ_j g_j s_j / D) of the chosen, D the sum they are
// divided by.
template <class A>
__global__ void BackwardKernel(Rows<A> dweight_TK, const A* dscore_TE, int64_t dscore_stride,
                               Rows<A> score_TE, const int32_t* index_TK, RouterConfig config,
                               int64_t tokens, Rows<A> dlogits_TE) {
  int64_t t = Token(), experts = config.experts, top_k = config.top_k;
  if (t >= tokens) return;  // a whole warp
  const A *s = score_TE[t], *g = dweight_TK[t];
  const int32_t* index = index_TK + t * top_k;
  A* d = dlogits_TE[t];
  A factor = static_cast<A>(config.scale), shift = 0;
  if (config.normalize) {
    A sum = ChosenSum(s, index, top_k);
    for (int64_t k = 0; k < top_k; ++k) shift += g[k] * s[index[k]];
    shift /= sum;
    factor /= sum;
  }
  A dot = 0;
  for (int64_t e = Lane(); e < experts; e += kWarpSize) {
    A slope = dscore_TE != nullptr ? dscore_TE[t * dscore_stride + e] : A(0);
    for (int64_t k = 0; k < top_k; ++k) {
      if (index[k] == e) slope += factor * (g[k] - shift);
    }
    d[e] = slope;
    dot = Fma(slope, s[e], dot);
  }
  A mean = WarpSum(dot);
  bool sigmoid = config.kind == Kind::kSigmoidGroups;
  for (int64_t e = Lane(); e < experts; e += kWarpSize) {
    d[e] = sigmoid ? d[e] * (s[e] * (A(1) - s[e])) : s[e] * (d[e] - mean);
  }
}

// mean_t = Σ_e f_e s'_te, and d/ds_te = factor · (f_e − mean_t) / Σ_j s_tj.
template <class A>
__global__ void BalanceKernel(Rows<A> score_TE, const int32_t* sequence_T, const A* f_SE,
                              const A* factor_S, int64_t tokens, int64_t experts, double* mean_T,
                              A* dscore_TE, int64_t dscore_stride) {
  int64_t t = Token();
  if (t >= tokens) return;  // a whole warp
  const A *s = score_TE[t], *f = f_SE + sequence_T[t] * experts;
  A sum = 0, dot = 0;
  for (int64_t e = Lane(); e < experts; e += kWarpSize) {
    sum += s[e];
    dot = Fma(s[e], f[e], dot);
  }
  sum = WarpSum(sum) + A(kTiny);
  A mean = WarpSum(dot) / sum;
  if (Lane() == 0) mean_T[t] = static_cast<double>(mean);
  if (dscore_TE == nullptr) return;
  A factor = factor_S[sequence_T[t]];
  for (int64_t e = Lane(); e < experts; e += kWarpSize) {
    dscore_TE[t * dscore_stride + e] += factor / sum * (f[e] - mean);
  }
}

// What the balance kernel needs of each sequence.
template <class A>
struct SequenceTables {
  std::vector<int32_t> sequence_T;
  std::vector<A> f_SE, factor_S;

  SequenceTables(const Routing& routing, std::span<const int32_t> cu_seqlens,
                 std::span<const double> weight_S, const RouterConfig& config)
      : sequence_T(cu_seqlens.back()), f_SE(weight_S.size() * config.experts, A(0)) {
    for (size_t s = 0; s < weight_S.size(); ++s) {
      int64_t begin = cu_seqlens[s], end = cu_seqlens[s + 1], tokens = end - begin;
      A* f = f_SE.data() + static_cast<int64_t>(s) * config.experts;
      std::fill(sequence_T.begin() + begin, sequence_T.begin() + end, static_cast<int32_t>(s));
      for (int64_t i = begin * config.top_k; i < end * config.top_k; ++i) {
        f[routing.index_TK[i]] += A(1);
      }
      for (int64_t e = 0; e < config.experts && tokens > 0; ++e) {
        f[e] *= static_cast<A>(config.experts) / static_cast<A>(config.top_k * tokens);
      }
      factor_S.push_back(tokens == 0 ? A(0)
                                     : static_cast<A>(weight_S[s] / static_cast<double>(tokens)));
    }
  }
};

}  // namespace

template <class A>
void Route(Context& ctx, const Tensor& logits_TE, const Tensor* bias_E, const RouterConfig& config,
           bool replay, Routing& routing) {
  int64_t tokens = logits_TE.dim(0);
  if (tokens == 0) return;
  Tensor index_TK = Upload(ctx, std::span<const int32_t>(routing.index_TK));
  Launch(ctx, kOp, RouteKernel<A>,
         WarpEach(tokens, kWarps * Choice<A>::Bytes(config.experts, config.groups)),
         Rows<A>(logits_TE), bias_E != nullptr ? bias_E->data<float>() : nullptr, config, replay,
         tokens, Rows<A>(routing.score_TE), Rows<A>(routing.weight_TK), index_TK.data<int32_t>());
  if (replay) return;
  runtime::CopyBytes(routing.index_TK.data(), Device::Cpu(), index_TK.raw(), ctx.device(),
                     index_TK.bytes(), &ctx.stream());
}

template <class A>
void RouteBackward(Context& ctx, const Tensor& dweight_TK, const Tensor* dscore_TE,
                   const Routing& routing, const RouterConfig& config, const Tensor& dlogits_TE) {
  int64_t tokens = dlogits_TE.dim(0);
  if (tokens == 0) return;
  Tensor index_TK = Upload(ctx, std::span<const int32_t>(routing.index_TK));
  Launch(ctx, kOp, BackwardKernel<A>, WarpEach(tokens), Rows<A>(dweight_TK),
         dscore_TE != nullptr ? dscore_TE->data<A>() : nullptr,
         dscore_TE != nullptr ? dscore_TE->row_stride() : 0, Rows<A>(routing.score_TE),
         index_TK.data<int32_t>(), config, tokens, Rows<A>(dlogits_TE));
}

template <class A>
double SequenceBalance(Context& ctx, const Routing& routing, std::span<const int32_t> cu_seqlens,
                       std::span<const double> sequence_weight_S, const RouterConfig& config,
                       const Tensor* dscore_TE) {
  int64_t tokens = cu_seqlens.back();
  if (tokens == 0) return 0;
  SequenceTables<A> tables(routing, cu_seqlens, sequence_weight_S, config);
  Tensor sequence_T = Upload(ctx, std::span<const int32_t>(tables.sequence_T));
  Tensor f_SE = Upload(ctx, std::span<const A>(tables.f_SE));
  Tensor factor_S = Upload(ctx, std::span<const A>(tables.factor_S));
  Tensor mean_T = ctx.Empty({tokens}, DType::kF64);
  Launch(ctx, kOp, BalanceKernel<A>, WarpEach(tokens), Rows<A>(routing.score_TE),
         sequence_T.data<int32_t>(), f_SE.data<A>(), factor_S.data<A>(), tokens, config.experts,
         mean_T.data<double>(), dscore_TE != nullptr ? dscore_TE->data<A>() : nullptr,
         dscore_TE != nullptr ? dscore_TE->row_stride() : 0);
  std::vector<double> mean(tokens);
  runtime::CopyBytes(mean.data(), Device::Cpu(), mean_T.raw(), ctx.device(), mean_T.bytes(),
                     &ctx.stream());
  double loss = 0;
  for (size_t s = 0; s < sequence_weight_S.size(); ++s) {
    double total = 0;
    for (int32_t t = cu_seqlens[s]; t < cu_seqlens[s + 1]; ++t) total += mean[t];
    int32_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    if (length > 0) loss += sequence_weight_S[s] * total / static_cast<double>(length);
  }
  return loss;
}

#define HONE_INSTANTIATE(A)                                                                 \
  template void Route<A>(Context&, const Tensor&, const Tensor*, const RouterConfig&, bool, \
                         Routing&);                                                         \
  template void RouteBackward<A>(Context&, const Tensor&, const Tensor*, const Routing&,    \
                                 const RouterConfig&, const Tensor&);                       \
  template double SequenceBalance<A>(Context&, const Routing&, std::span<const int32_t>,    \
                                     std::span<const double>, const RouterConfig&, const Tensor*);
HONE_INSTANTIATE(float)
HONE_INSTANTIATE(double)
#undef HONE_INSTANTIATE

}  // namespace hone::kernels::cuda
