#include "kernels/router/router.h"

#include <algorithm>

#include "kernels/dispatch.h"
#include "kernels/router/router_cpu.h"
#include "kernels/router/router_cuda.h"
#include "kernels/switch_device.h"

namespace hone::kernels {
namespace {

constexpr std::string_view kOp = "router";

template <class Fn>
decltype(auto) SwitchScore(DType dtype, Fn&& fn) {
  CheckShape(dtype == DType::kF32 || dtype == DType::kF64,
             "[{}] logits have dtype {}, expected f32 or f64", kOp, runtime::DTypeName(dtype));
  return dtype == DType::kF64 ? fn(double{}) : fn(float{});
}

void CheckConfig(const RouterConfig& c) {
  Check<ConfigError>(c.experts > 0 && c.top_k > 0 && c.top_k <= c.experts,
                     "[{}] top_k = {} must lie in [1, experts = {}]", kOp, c.top_k, c.experts);
  if (c.kind != RouterConfig::Kind::kSigmoidGroups) return;
  Check<ConfigError>(c.groups > 0 && c.experts % c.groups == 0,
                     "[{}] {} experts do not split into {} groups", kOp, c.experts, c.groups);
  Check<ConfigError>(c.top_groups > 0 && c.top_groups <= c.groups,
                     "[{}] top_groups = {} must lie in [1, groups = {}]", kOp, c.top_groups,
                     c.groups);
  Check<ConfigError>(c.top_groups * (c.experts / c.groups) >= c.top_k,
                     "[{}] {} groups of {} experts hold fewer than top_k = {}", kOp, c.top_groups,
                     c.experts / c.groups, c.top_k);
}

// A recorded choice, token by token in ascending order as Route returns it.
std::vector<int32_t> Replayed(std::span<const int32_t> replay_TK, int64_t tokens,
                              const RouterConfig& c) {
  CheckShape(static_cast<int64_t>(replay_TK.size()) == tokens * c.top_k,
             "[{}] {} replayed experts for {} tokens with top_k = {}", kOp, replay_TK.size(),
             tokens, c.top_k);
  std::vector<int32_t> index(replay_TK.begin(), replay_TK.end());
  for (int64_t t = 0; t < tokens; ++t) {
    auto first = index.begin() + t * c.top_k, last = first + c.top_k;
    std::sort(first, last);
    CheckShape(*first >= 0 && *(last - 1) < c.experts,
               "[{}] replayed experts of token {} reach from {} to {}, outside [0, {})", kOp, t,
               *first, *(last - 1), c.experts);
    auto twice = std::adjacent_find(first, last);
    CheckShape(twice == last, "[{}] replayed expert {} twice for token {}", kOp,
               twice == last ? 0 : *twice, t);
  }
  return index;
}

void CheckRouting(const Context& ctx, const Routing& routing, const RouterConfig& config) {
  CheckConfig(config);
  CheckTensor(kOp, "score", ctx, routing.score_TE, routing.score_TE.dtype());
  CheckShape(routing.score_TE.ndim() == 2 && routing.score_TE.dim(1) == config.experts,
             "[{}] score has shape {}, expected [tokens, {}]", kOp,
             runtime::ShapeToString(routing.score_TE.shape()), config.experts);
  int64_t chosen = routing.score_TE.dim(0) * config.top_k;
  CheckShape(static_cast<int64_t>(routing.index_TK.size()) == chosen,
             "[{}] {} chosen experts, expected {}", kOp, routing.index_TK.size(), chosen);
}

}  // namespace

Routing Route(Context& ctx, const Tensor& logits_TE, const Tensor* bias_E,
              const RouterConfig& config, std::span<const int32_t> replay_TK) {
  CheckConfig(config);
  CheckTensor(kOp, "logits", ctx, logits_TE, logits_TE.dtype());
  CheckShape(logits_TE.ndim() == 2 && logits_TE.dim(1) == config.experts,
             "[{}] logits have shape {}, expected [tokens, {}]", kOp,
             runtime::ShapeToString(logits_TE.shape()), config.experts);
  if (bias_E) {
    CheckTensor(kOp, "bias", ctx, *bias_E, DType::kF32, {config.experts});
    CheckShape(config.kind == RouterConfig::Kind::kSigmoidGroups,
               "[{}] a bias of {} experts was given to softmax routing, which has none", kOp,
               config.experts);
  }
  int64_t tokens = logits_TE.dim(0);
  bool replay = !replay_TK.empty();
  return SwitchScore(logits_TE.dtype(), [&](auto t) {
    Routing routing;
    routing.index_TK =
        replay ? Replayed(replay_TK, tokens, config) : std::vector<int32_t>(tokens * config.top_k);
    routing.weight_TK = ctx.Empty({tokens, config.top_k}, logits_TE.dtype());
    routing.score_TE = ctx.Empty(logits_TE.shape(), logits_TE.dtype());
    using A = decltype(t);
    SwitchDevice(
        ctx, [&] { cpu::Route<A>(ctx, logits_TE, bias_E, config, replay, routing); },
        [&] { cuda::Route<A>(ctx, logits_TE, bias_E, config, replay, routing); });
    return routing;
  });
}

Tensor RouteBackward(Context& ctx, const Tensor& dweight_TK, const Tensor* dscore_TE,
                     const Routing& routing, const RouterConfig& config) {
  CheckRouting(ctx, routing, config);
  DType dtype = routing.score_TE.dtype();
  int64_t tokens = routing.score_TE.dim(0);
  CheckTensor(kOp, "dweight", ctx, dweight_TK, dtype, {tokens, config.top_k});
  if (dscore_TE && !dscore_TE->defined()) dscore_TE = nullptr;
  if (dscore_TE) CheckTensor(kOp, "dscore", ctx, *dscore_TE, dtype, routing.score_TE.shape());
  Tensor dlogits_TE = ctx.EmptyLike(routing.score_TE);
  SwitchScore(dtype, [&](auto t) {
    using A = decltype(t);
    SwitchDevice(
        ctx,
        [&] { cpu::RouteBackward<A>(ctx, dweight_TK, dscore_TE, routing, config, dlogits_TE); },
        [&] { cuda::RouteBackward<A>(ctx, dweight_TK, dscore_TE, routing, config, dlogits_TE); });
  });
  return dlogits_TE;
}

double SequenceBalanceLoss(Context& ctx, const Routing& routing,
                           std::span<const int32_t> cu_seqlens,
                           std::span<const double> sequence_weight_S, const RouterConfig& config,
                           const Tensor* dscore_TE) {
  CheckRouting(ctx, routing, config);
  const Tensor& score = routing.score_TE;
  if (dscore_TE) CheckTensor(kOp, "dscore", ctx, *dscore_TE, score.dtype(), score.shape());
  CheckShape(cu_seqlens.size() == sequence_weight_S.size() + 1,
             "[{}] {} sequence offsets for {} sequence weights", kOp, cu_seqlens.size(),
             sequence_weight_S.size());
  CheckShape(cu_seqlens.front() == 0 && cu_seqlens.back() == score.dim(0),
             "[{}] sequences cover [{}, {}) of {} tokens", kOp, cu_seqlens.front(),
             cu_seqlens.back(), score.dim(0));
  for (size_t s = 0; s < sequence_weight_S.size(); ++s) {
    CheckShape(cu_seqlens[s] <= cu_seqlens[s + 1],
               "[{}] sequence {} ends at {} before its start {}", kOp, s, cu_seqlens[s + 1],
               cu_seqlens[s]);
  }
  double loss = 0;
  SwitchScore(score.dtype(), [&](auto t) {
    using A = decltype(t);
    SwitchDevice(
        ctx,
        [&] {
          for (size_t s = 0; s < sequence_weight_S.size(); ++s) {
            loss += cpu::SequenceBalance<A>(ctx, routing, cu_seqlens[s], cu_seqlens[s + 1],
                                            sequence_weight_S[s], config, dscore_TE);
          }
        },
        [&] {
          loss = cuda::SequenceBalance<A>(ctx, routing, cu_seqlens, sequence_weight_S, config,
                                          dscore_TE);
        });
  });
  return loss;
}

}  // namespace hone::kernels
