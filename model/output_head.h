// What follows the last block: final norm, output projection, optional value head and multi-token
// prediction; and the loss. Logits of a whole batch never exist.
#pragma once

#include <memory>
#include <optional>

#include "model/layers/layer.h"
#include "model/layers/multi_token_prediction.h"
#include "parallel/pipeline_stage.h"

namespace hone::model {

class OutputHead {
 public:
  // What Backward needs of one microbatch.
  struct Saved {
    Tensor x_TD, n_TD;                // before and after the final norm
    Tensor dn_TD;                     // from the one-pass cross-entropy, else undefined
    Tensor lse_T, logp_T, entropy_T;  // of the two-pass log-probability
    parallel::HeadGradient gradient;
    double temperature = 1.0;
    RecordPtr mtp;
  };
  struct Request {
    const parallel::LossFunction* loss = nullptr;  // null: log-probabilities only
    bool keep_output = false;
    MultiTokenPrediction::Routing mtp_routing;
  };

  // `projection_VD` is lm_head or, when tied, the embedding. Not owned; it outlives this.
  OutputHead(ParameterBuilder& builder, const ModelConfig& config, Parameter* projection_VD);
  void AddMultiTokenPrediction(ParameterBuilder& builder, const ModelConfig& config,
                               const kernels::RopeTable& rope,
                               std::shared_ptr<parallel::ExpertDispatcher> dispatcher,
                               const Parameter& embedding_VD, bool activation_checkpointing);

  // With `saved` the gradient of the output projection may be added at once. The MTP loss takes
  // part in training with a cross-entropy only: it is an objective of pretraining and fine-tuning.
  parallel::PipelineStage::Outcome Forward(Context& ctx, const Tensor& x_TD,
                                           const TokenBatch& batch, const Request& request,
                                           Saved* saved);
  Tensor Backward(Context& ctx, const TokenBatch& batch, Saved saved);

  // Of given rows, f32 (f64 for f64): the bits that Forward's log-probabilities are made of.
  Tensor Logits(Context& ctx, const Tensor& x_RD) const;
  MultiTokenPrediction* mtp() { return mtp_.get(); }

 private:
  parallel::HeadOutput Score(Context& ctx, const Tensor& n_TD, const TokenBatch& batch,
                             const parallel::LossFunction* loss, Saved* saved) const;
  Tensor ProjectionGradient(Context& ctx) const;

  RmsNorm norm_;
  Parameter* projection_;
  std::optional<Linear> value_;
  std::unique_ptr<MultiTokenPrediction> mtp_;
};

}  // namespace hone::model
