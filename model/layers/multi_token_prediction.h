// Multi-token prediction of depth 1 (DeepSeek-V3, arXiv 2412.19437 §2.2, eq. 21–25).
//
//   h'_i  = eh_proj · [RMSNorm(Emb(t_{i+1})) ; RMSNorm(h_i)]          (eq. 21)
//   y_i   = TransformerBlock(h')_i                                    (eq. 22)
//   P(t_{i+2}) = softmax(OutHead(RMSNorm(y_i)))                       (eq. 23)
// Embedding and output head are the main model's. h is what the main model's own head reads: the
// output of its final norm, as the published checkpoint is served elsewhere. The order of the two
// halves and the names under model.layers.{num_hidden_layers}. are that checkpoint's: enorm, hnorm,
// eh_proj, input_layernorm, self_attn, post_attention_layernorm, mlp, shared_head.norm.
//
// In a TokenBatch, position i of a sequence reads token_T[i + 1], predicts target_T[i + 1] and
// weighs mtp_loss_weight · loss_weight_T[i + 1]; the last position of each sequence takes no part.
// So of T tokens at most T − S rows are worked on, in S sequences. The sequence balance loss of the
// block's experts weighs as the main model's, without mtp_loss_weight. A spliced embedding stands
// in for its token's here too; its own gradient from here is dropped.
//
// Gradient convention: dh is returned (=); those of parameters, embedding and head are added (+=).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/layers/layer.h"
#include "parallel/expert_dispatcher.h"
#include "runtime/token_batch.h"

namespace hone::model {

class MultiTokenPrediction {
 public:
  // `rope`, `embedding_VD` and `head_VD` outlive this; either may be frozen. `dispatcher` may be
  // null when the block is dense. With `activation_checkpointing` a record keeps the block's input
  // only.
  MultiTokenPrediction(ParameterBuilder& builder, const ModelConfig& config,
                       const kernels::RopeTable& rope,
                       std::shared_ptr<parallel::ExpertDispatcher> dispatcher,
                       const Parameter& embedding_VD, const Parameter& head_VD,
                       bool activation_checkpointing = false);
  ~MultiTokenPrediction();

  struct Routing {
    std::span<const int32_t> replay_TK;          // as FeedForward::MoeInput; empty: route
    std::vector<int32_t>* routing_TK = nullptr;  // set to T·K choices; experts 0 … K−1 where none
  };
  // Σ_i mtp_loss_weight · w_i · (−log P(t_{i+2})). With `saved` the head's gradient is added at
  // once; without, nothing is kept. At ep > 1 every rank of ep calls this, with empty batches too.
  double Forward(Context& ctx, const Tensor& h_TD, const TokenBatch& batch, const Routing& routing,
                 RecordPtr* saved) const;
  // dh_TD of that sum.
  Tensor Backward(Context& ctx, RecordPtr saved) const;

  // The block's expert counts and balance loss are taken from here.
  FeedForward& feed_forward() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::model
