// Router, exchange, experts, combination. T tokens, D model dim, E experts, K a token, F expert FFN
// dim; R = T · K rows on this rank's side of the exchange, L rows of the experts that live here.
//
//   z_TE = x · W_g ;  (index, weight) = route(z) ;  y_t = Σ_k weight_tk · expert_k(x_t) +
//   shared(x_t)
// Router arithmetic is f32 (f64 in f64) whatever the model's dtype.
//
// Balance. Two rules of DeepSeek-V3 (§2.1.2) sit here:
//   - After a step, b_e += γ · sign(mean_e'(n_e') − n_e), n_e the tokens of the step that chose e
//   over all
//     replicas. Nothing changes for a step without tokens.
//   - The sequence-wise loss (eq. 17) adds α · Σ_s W_s · loss_s to the step's loss, W_s the sum of
//   the loss
//     weights of sequence s: normalised like the step's token mean, and indifferent to layout.
#include "model/layers/moe_block.h"

#include <algorithm>
#include <numeric>

#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/fp8/fp8.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/linear/linear.h"
#include "kernels/moe_permute/moe_permute.h"
#include "kernels/swiglu/swiglu.h"
#include "runtime/replay.h"

namespace hone::model {

namespace {

using Init = ParameterBuilder::Init;
using parallel::ExpertDispatcher;

void PushWeightGradient(Context& ctx, std::function<void()> work) {
  if (ctx.weight_gradients) {
    ctx.weight_gradients->push_back(std::move(work));
  } else {
    work();
  }
}

// The experts that live here, as grouped linear layers.
class GroupedExperts {
 public:
  struct Saved {
    Tensor x_LD, gate_LF, up_LF;
  };

  GroupedExperts(ParameterBuilder& builder, const std::string& prefix, const ModelConfig& config,
                 const ExpertDispatcher& dispatcher) {
    int64_t e = config.n_routed_experts, f = config.moe_intermediate_size, d = config.hidden_size;
    int64_t begin = dispatcher.first_expert(), count = dispatcher.local_experts();
    gate_EFD_ =
        builder.AddExperts(prefix + ".gate_proj.weight", {e, f, d}, begin, count, Init::kNormal);
    up_EFD_ =
        builder.AddExperts(prefix + ".up_proj.weight", {e, f, d}, begin, count, Init::kNormal);
    down_EDF_ = builder.AddExperts(prefix + ".down_proj.weight", {e, d, f}, begin, count,
                                   Init::kNormalScaledByDepth);
  }

  Tensor Forward(Context& ctx, const Tensor& x_LD, const std::vector<int64_t>& offset_E,
                 Saved* saved) const {
    runtime::Unrecorded apart(ctx.stream());  // the products are as long as the choices make them
    Tensor gate_LF = Product(ctx, x_LD, gate_EFD_->value, offset_E);
    Tensor up_LF = Product(ctx, x_LD, up_EFD_->value, offset_E);
    Tensor h_LF = kernels::SwiGlu(ctx, gate_LF, up_LF);
    if (saved) *saved = {x_LD, gate_LF, up_LF};
    return Product(ctx, h_LF, down_EDF_->value, offset_E);
  }

  Tensor Backward(Context& ctx, const Tensor& dy_LD, const std::vector<int64_t>& offset_E,
                  const Saved& saved) const {
    Tensor h_LF = InputGradient(ctx, dy_LD, down_EDF_->value, offset_E);  // dh, until the next line
    kernels::SwiGluBackward(ctx, h_LF, saved.gate_LF, saved.up_LF);
    const Tensor &dgate_LF = saved.gate_LF, &dup_LF = saved.up_LF;
    AddWeightGradient(ctx, *down_EDF_, dy_LD, h_LF, offset_E);
    AddWeightGradient(ctx, *gate_EFD_, dgate_LF, saved.x_LD, offset_E);
    AddWeightGradient(ctx, *up_EFD_, dup_LF, saved.x_LD, offset_E);
    Tensor dx_LD = InputGradient(ctx, dgate_LF, gate_EFD_->value, offset_E);
    kernels::AddInPlace(ctx, dx_LD, InputGradient(ctx, dup_LF, up_EFD_->value, offset_E));
    return dx_LD;
  }

 private:
  static Tensor Product(Context& ctx, const Tensor& x, const Tensor& w,
                        const std::vector<int64_t>& offset_E) {
    return ctx.fp8 ? kernels::Fp8GroupedLinear(ctx, x, w, offset_E)
                   : kernels::GroupedLinear(ctx, x, w, offset_E);
  }
  static Tensor InputGradient(Context& ctx, const Tensor& dy, const Tensor& w,
                              const std::vector<int64_t>& offset_E) {
    return ctx.fp8 ? kernels::Fp8GroupedLinearInputGradient(ctx, dy, w, offset_E)
                   : kernels::GroupedLinearInputGradient(ctx, dy, w, offset_E);
  }
  void AddWeightGradient(Context& ctx, const Parameter& p, const Tensor& dy, const Tensor& x,
                         const std::vector<int64_t>& offset_E) const {
    if (!p.gradient.defined()) return;
    PushWeightGradient(ctx, [&ctx, dw = p.gradient, dy, x, offset_E, fp8 = ctx.fp8] {
      if (fp8) return kernels::Fp8GroupedLinearWeightGradient(ctx, dy, x, dw, offset_E);
      kernels::GroupedLinearWeightGradient(ctx, dy, x, dw, offset_E);
    });
  }

  Parameter *gate_EFD_, *up_EFD_, *down_EDF_;
};

struct MoeRecord : Record {
  Tensor x_TD;
  kernels::Routing routing;
  kernels::Permutation permutation;
  ExpertDispatcher::Plan plan;
  GroupedExperts::Saved experts;
  Tensor rows_RD;  // what the experts gave, before weighting
  RecordPtr shared;
  std::vector<int32_t> cu_seqlens;       // of the balance loss; empty without it
  std::vector<double> balance_weight_S;  // α · W_s
};

class MoeBlock : public FeedForward {
 public:
  MoeBlock(ParameterBuilder& builder, const std::string& prefix, const ModelConfig& config,
           std::shared_ptr<ExpertDispatcher> dispatcher);

  StatePtr ForwardDispatch(Context& ctx, const Tensor& x_TD, const MoeInput& input,
                           RecordPtr* saved) override;
  void ForwardExperts(Context& ctx, State& state) override;
  Tensor ForwardCombine(Context& ctx, StatePtr state) override;
  StatePtr BackwardDispatch(Context& ctx, const Tensor& dy_TD, RecordPtr saved) override;
  void BackwardExperts(Context& ctx, State& state) override;
  Tensor BackwardCombine(Context& ctx, StatePtr state) override;
  double TakeAuxiliaryLoss() override { return std::exchange(auxiliary_loss_, 0.0); }
  void BeginStep() override { std::fill(count_E_.begin(), count_E_.end(), 0.0); }
  void UpdateBalance(const std::function<void(std::vector<double>&)>& sum) override;

 private:
  // The record is the caller's when it asked for one, else `own`.
  struct ForwardState : State {
    MoeRecord* record;
    std::unique_ptr<MoeRecord> own;
    bool keep;
    ExpertDispatcher::Handle exchange;
    Tensor shared_TD;
  };
  struct BackwardState : State {
    std::unique_ptr<MoeRecord> record;
    Tensor dy_TD, dweight_TK, dx_TD;  // dx: of what needs no exchange
    ExpertDispatcher::Handle exchange;
  };

  kernels::Routing RouteTokens(Context& ctx, const Tensor& x_TD, const MoeInput& input) const;
  Tensor RouterBackward(Context& ctx, const BackwardState& state) const;
  void PrepareBalance(const MoeInput& input, MoeRecord& record) const;
  void CountStep(Context& ctx, const MoeRecord& record);

  kernels::RouterConfig router_;
  double alpha_, gamma_;
  std::shared_ptr<ExpertDispatcher> dispatcher_;
  Parameter* gate_ED_;
  Parameter* bias_E_ = nullptr;
  GroupedExperts experts_;
  std::unique_ptr<FeedForward> shared_;
  std::vector<double> count_E_;  // of this rank's tokens in this step
  double auxiliary_loss_ = 0;
};

std::shared_ptr<ExpertDispatcher> OrLocal(std::shared_ptr<ExpertDispatcher> dispatcher,
                                          int64_t experts) {
  if (dispatcher) return dispatcher;
  return std::make_shared<ExpertDispatcher>(parallel::MakeSingleGroup(), experts);
}

MoeBlock::MoeBlock(ParameterBuilder& builder, const std::string& prefix, const ModelConfig& config,
                   std::shared_ptr<ExpertDispatcher> dispatcher)
    : router_(config.router_config()),
      alpha_(config.balance_loss_alpha),
      gamma_(config.bias_update_speed),
      dispatcher_(OrLocal(std::move(dispatcher), config.n_routed_experts)),
      gate_ED_(builder.Add(prefix + ".gate.weight", {config.n_routed_experts, config.hidden_size},
                           Init::kNormal)),
      experts_(builder, prefix + ".experts", config, *dispatcher_),
      count_E_(config.n_routed_experts, 0.0) {
  if (router_.kind == kernels::RouterConfig::Kind::kSigmoidGroups) {
    bias_E_ = builder.AddBuffer(prefix + ".gate.e_score_correction_bias", {router_.experts});
  }
  if (config.n_shared_experts > 0) {
    shared_ = MakeSwiGluMlp(builder, prefix + ".shared_experts", config.hidden_size,
                            config.n_shared_experts * config.moe_intermediate_size);
  }
}

kernels::Routing MoeBlock::RouteTokens(Context& ctx, const Tensor& x_TD,
                                       const MoeInput& input) const {
  DType dtype = kernels::AccDType(x_TD.dtype());
  Tensor logits_TE = kernels::Linear(ctx, kernels::Cast(ctx, x_TD, dtype),
                                     kernels::Cast(ctx, gate_ED_->value, dtype));
  Tensor bias_E;
  if (bias_E_) bias_E = kernels::Cast(ctx, bias_E_->value, DType::kF32);
  kernels::Routing routing =
      kernels::Route(ctx, logits_TE, bias_E_ ? &bias_E : nullptr, router_, input.replay_TK);
  if (input.routing_TK) *input.routing_TK = routing.index_TK;
  return routing;
}

void MoeBlock::PrepareBalance(const MoeInput& input, MoeRecord& record) const {
  if (alpha_ == 0 || input.loss_weight_T.empty()) return;
  CheckShape(!input.cu_seqlens.empty() &&
                 input.cu_seqlens.back() == static_cast<int32_t>(input.loss_weight_T.size()),
             "[moe_block] the balance loss has {} token weights and {} sequence offsets",
             input.loss_weight_T.size(), input.cu_seqlens.size());
  record.cu_seqlens.assign(input.cu_seqlens.begin(), input.cu_seqlens.end());
  for (size_t s = 0; s + 1 < record.cu_seqlens.size(); ++s) {
    double weight = 0;
    for (int32_t t = record.cu_seqlens[s]; t < record.cu_seqlens[s + 1]; ++t) {
      weight += input.loss_weight_T[t];
    }
    record.balance_weight_S.push_back(alpha_ * weight);
  }
}

void MoeBlock::CountStep(Context& ctx, const MoeRecord& record) {
  for (int32_t e : record.routing.index_TK) count_E_[e] += 1;
  if (record.balance_weight_S.empty()) return;
  auxiliary_loss_ += kernels::SequenceBalanceLoss(ctx, record.routing, record.cu_seqlens,
                                                  record.balance_weight_S, router_, nullptr);
}

FeedForward::StatePtr MoeBlock::ForwardDispatch(Context& ctx, const Tensor& x_TD,
                                                const MoeInput& input, RecordPtr* saved) {
  auto state = std::make_unique<ForwardState>();
  auto owner = std::make_unique<MoeRecord>();
  MoeRecord& record = *owner;
  state->record = owner.get();
  state->keep = saved != nullptr;
  if (saved) {
    *saved = std::move(owner);
  } else {
    state->own = std::move(owner);
  }
  record.x_TD = x_TD;
  record.routing = RouteTokens(ctx, x_TD, input);
  record.permutation =
      kernels::MakePermutation(record.routing.index_TK, router_.top_k, router_.experts);
  record.plan = dispatcher_->MakePlan(record.permutation.offset_E);
  state->exchange =
      dispatcher_->Dispatch(ctx, kernels::Permute(ctx, x_TD, record.permutation), record.plan);

  using Count = MoeInput::Count;
  // A batch without weight only keeps the ranks in step, and how many of them there are depends on
  // the layout: its tokens are nobody's load.
  std::span<const float> weight_T = input.loss_weight_T;
  bool weightless = !weight_T.empty() &&
                    std::all_of(weight_T.begin(), weight_T.end(), [](float w) { return w == 0; });
  bool count =
      !weightless && (input.count == Count::kYes || (input.count == Count::kIfSaved && saved));
  if (count || saved) PrepareBalance(input, record);
  if (count) CountStep(ctx, record);
  return state;
}

void MoeBlock::ForwardExperts(Context& ctx, State& base) {
  auto& state = static_cast<ForwardState&>(base);
  MoeRecord& record = *state.record;
  if (shared_) {  // while rows are under way
    state.shared_TD = shared_->Forward(ctx, record.x_TD, {}, state.keep ? &record.shared : nullptr);
  }
  Tensor y_LD = experts_.Forward(ctx, state.exchange.Finish(), record.plan.local_offset,
                                 state.keep ? &record.experts : nullptr);
  state.exchange = dispatcher_->Combine(ctx, y_LD, record.plan);
}

Tensor MoeBlock::ForwardCombine(Context& ctx, StatePtr base) {
  auto& state = static_cast<ForwardState&>(*base);
  MoeRecord& record = *state.record;
  Tensor rows_RD = state.exchange.Finish();
  Tensor y_TD = kernels::Unpermute(ctx, rows_RD, record.routing.weight_TK, record.permutation);
  if (shared_) kernels::AddInPlace(ctx, y_TD, state.shared_TD);
  if (state.keep) record.rows_RD = rows_RD;
  return y_TD;
}

FeedForward::StatePtr MoeBlock::BackwardDispatch(Context& ctx, const Tensor& dy_TD,
                                                 RecordPtr saved) {
  auto state = std::make_unique<BackwardState>();
  state->record.reset(static_cast<MoeRecord*>(saved.release()));
  MoeRecord& record = *state->record;
  state->dy_TD = dy_TD;
  auto [drows_RD, dweight_TK] = kernels::UnpermuteBackward(
      ctx, dy_TD, record.rows_RD, record.routing.weight_TK, record.permutation);
  record.rows_RD = Tensor();
  state->dweight_TK = dweight_TK;
  state->exchange = dispatcher_->Dispatch(ctx, drows_RD, record.plan);
  return state;
}

Tensor MoeBlock::RouterBackward(Context& ctx, const BackwardState& state) const {
  const MoeRecord& record = *state.record;
  Tensor dscore_TE;
  if (!record.balance_weight_S.empty()) {
    dscore_TE = ctx.ZerosLike(record.routing.score_TE);
    kernels::SequenceBalanceLoss(ctx, record.routing, record.cu_seqlens, record.balance_weight_S,
                                 router_, &dscore_TE);
  }
  Tensor dlogits_TE = kernels::RouteBackward(
      ctx, state.dweight_TK, dscore_TE.defined() ? &dscore_TE : nullptr, record.routing, router_);
  DType dtype = dlogits_TE.dtype();
  if (gate_ED_->gradient.defined()) {
    PushWeightGradient(ctx, [&ctx, dw = gate_ED_->gradient, dlogits_TE, x_TD = record.x_TD] {
      kernels::LinearWeightGradient(ctx, dlogits_TE, kernels::Cast(ctx, x_TD, dlogits_TE.dtype()),
                                    dw);
    });
  }
  Tensor dx_TD =
      kernels::LinearInputGradient(ctx, dlogits_TE, kernels::Cast(ctx, gate_ED_->value, dtype));
  return kernels::Cast(ctx, dx_TD, record.x_TD.dtype());
}

void MoeBlock::BackwardExperts(Context& ctx, State& base) {
  auto& state = static_cast<BackwardState&>(base);
  MoeRecord& record = *state.record;
  state.dx_TD = RouterBackward(ctx, state);
  if (shared_) {
    kernels::AddInPlace(ctx, state.dx_TD,
                        shared_->Backward(ctx, state.dy_TD, std::move(record.shared)));
  }
  Tensor dx_LD =
      experts_.Backward(ctx, state.exchange.Finish(), record.plan.local_offset, record.experts);
  record.experts = {};
  state.exchange = dispatcher_->Combine(ctx, dx_LD, record.plan);
}

Tensor MoeBlock::BackwardCombine(Context& ctx, StatePtr base) {
  auto& state = static_cast<BackwardState&>(*base);
  Tensor drows_RD = state.exchange.Finish();
  Tensor dx_TD = kernels::Unpermute(ctx, drows_RD, Tensor(), state.record->permutation);
  kernels::AddInPlace(ctx, dx_TD, state.dx_TD);
  return dx_TD;
}

void MoeBlock::UpdateBalance(const std::function<void(std::vector<double>&)>& sum) {
  std::vector<double> count_E = std::exchange(count_E_, std::vector<double>(router_.experts, 0.0));
  if (!bias_E_) return;
  sum(count_E);
  double mean = std::accumulate(count_E.begin(), count_E.end(), 0.0) / router_.experts;
  std::vector<double> bias = ToDoubles(bias_E_->value);
  for (size_t e = 0; e < bias.size(); ++e) {
    bias[e] += gamma_ * ((mean > count_E[e]) - (mean < count_E[e]));
  }
  Tensor updated(bias.data(), bias_E_->value.shape(), DType::kF64, Device::Cpu());
  CopyTo(updated, bias_E_->value);
}

}  // namespace

std::unique_ptr<FeedForward> MakeMoeBlock(ParameterBuilder& builder, const std::string& prefix,
                                          const ModelConfig& config,
                                          std::shared_ptr<ExpertDispatcher> dispatcher) {
  return std::make_unique<MoeBlock>(builder, prefix, config, std::move(dispatcher));
}

}  // namespace hone::model
