#include "model/output_head.h"

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/linear/linear.h"
#include "kernels/token_logprob/token_logprob.h"

namespace hone::model {

using parallel::HeadOutput;
using parallel::LossFunction;
using Outcome = parallel::PipelineStage::Outcome;

OutputHead::OutputHead(ParameterBuilder& builder, const ModelConfig& config,
                       Parameter* projection_VD)
    : norm_(builder, "model.norm", config.hidden_size, config.rms_norm_eps),
      projection_(projection_VD) {
  if (config.value_head) {
    value_.emplace(builder, "value_head", config.hidden_size, 1, false);
    value_->KeepModelDtype();
  }
}

void OutputHead::AddMultiTokenPrediction(ParameterBuilder& builder, const ModelConfig& config,
                                         const kernels::RopeTable& rope,
                                         std::shared_ptr<parallel::ExpertDispatcher> dispatcher,
                                         const Parameter& embedding_VD,
                                         bool activation_checkpointing) {
  mtp_ =
      std::make_unique<MultiTokenPrediction>(builder, config, rope, std::move(dispatcher),
                                             embedding_VD, *projection_, activation_checkpointing);
}

// Where the projection's gradient goes; a frozen one still needs a place for it.
Tensor OutputHead::ProjectionGradient(Context& ctx) const {
  const Tensor& w_VD = projection_->value;
  return projection_->gradient.defined() ? projection_->gradient
                                         : ctx.Zeros(w_VD.shape(), kernels::AccDType(w_VD.dtype()));
}

HeadOutput OutputHead::Score(Context& ctx, const Tensor& n_TD, const TokenBatch& batch,
                             const LossFunction* loss, Saved* saved) const {
  HeadOutput out;
  if (loss && loss->values_only()) {
    CheckShape(value_.has_value(), "[head] the loss reads values, but the model has no value_head");
  } else if (loss && loss->is_cross_entropy() && !loss->needs_entropy()) {
    Tensor dw_VD = saved ? ProjectionGradient(ctx) : Tensor();
    kernels::CrossEntropyResult result =
        kernels::CrossEntropy(ctx, n_TD, projection_->value, batch.target_T, batch.loss_weight_T,
                              saved ? &dw_VD : nullptr);
    out.logp_T = result.logp_T;
    if (saved) saved->dn_TD = result.dx_TD;
  } else {
    const double temperature = loss ? loss->temperature() : 1.0;
    kernels::TokenLogprobResult result = kernels::TokenLogprob(
        ctx, n_TD, projection_->value, batch.target_T, temperature, loss && loss->needs_entropy());
    out.logp_T = result.logp_T;
    out.entropy_T = result.entropy_T;
    if (saved) {
      saved->logp_T = result.logp_T;
      saved->entropy_T = result.entropy_T;
      saved->lse_T = result.lse_T;
      saved->temperature = temperature;
    }
  }
  if (value_) {
    Tensor value_T1 = value_->Forward(ctx, n_TD);
    out.value_T =
        kernels::Cast(ctx, value_T1.Reshape({n_TD.dim(0)}), kernels::AccDType(n_TD.dtype()));
  }
  return out;
}

Outcome OutputHead::Forward(Context& ctx, const Tensor& x_TD, const TokenBatch& batch,
                            const Request& request, Saved* saved) {
  Tensor n_TD = norm_.Forward(ctx, x_TD);
  HeadOutput out = Score(ctx, n_TD, batch, request.loss, saved);
  Outcome outcome;
  if (request.loss) {
    LossFunction::Result result = request.loss->Evaluate(ctx, batch, out);
    outcome.loss = result.loss;
    outcome.metrics = std::move(result.metrics);
    double weight = 0;
    for (float w : batch.loss_weight_T) weight += w;
    outcome.metrics["loss_weight"] += weight;
    if (saved) saved->gradient = std::move(result.gradient);
  }
  if (request.keep_output) outcome.head = out;
  if (saved) {
    saved->x_TD = x_TD;
    saved->n_TD = n_TD;
    if (mtp_ && request.loss && request.loss->is_cross_entropy()) {
      const double loss = mtp_->Forward(ctx, n_TD, batch, request.mtp_routing, &saved->mtp);
      outcome.loss += loss;
      outcome.metrics["mtp_loss"] += loss;
    }
  }
  return outcome;
}

Tensor OutputHead::Backward(Context& ctx, const TokenBatch& batch, Saved saved) {
  Tensor dn_TD = saved.dn_TD;
  parallel::HeadGradient& gradient = saved.gradient;
  if (!dn_TD.defined() && !saved.logp_T.defined()) dn_TD = ctx.ZerosLike(saved.n_TD);
  if (!dn_TD.defined()) {
    kernels::TokenLogprobResult result{saved.logp_T, saved.entropy_T, saved.lse_T};
    Tensor dlogp_T = gradient.dlogp_T.defined() ? gradient.dlogp_T : ctx.ZerosLike(saved.logp_T);
    dn_TD = kernels::TokenLogprobBackward(ctx, dlogp_T, gradient.dentropy_T, saved.n_TD,
                                          projection_->value, batch.target_T, saved.temperature,
                                          result, ProjectionGradient(ctx));
  }
  if (value_ && gradient.dvalue_T.defined()) {
    Tensor dvalue_T1 =
        kernels::Cast(ctx, gradient.dvalue_T, dn_TD.dtype()).Reshape({dn_TD.dim(0), 1});
    kernels::AddInPlace(ctx, dn_TD, value_->Backward(ctx, dvalue_T1, saved.n_TD));
  }
  if (saved.mtp) {
    kernels::AddInPlace(ctx, dn_TD, mtp_->Backward(ctx, std::move(saved.mtp)));
  }
  return norm_.Backward(ctx, dn_TD, saved.x_TD);
}

Tensor OutputHead::Logits(Context& ctx, const Tensor& x_RD) const {
  Tensor n_RD = norm_.Forward(ctx, x_RD);
  return kernels::Cast(ctx, kernels::Linear(ctx, n_RD, projection_->value),
                       kernels::AccDType(n_RD.dtype()));
}

}  // namespace hone::model
