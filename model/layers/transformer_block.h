// One decoder block: x + attention(norm(x)), then h + feed_forward(norm(h)).
//
// Each direction runs in three phases, cut where a feed-forward part may exchange rows with other
// ranks, so that a schedule can put one microbatch's exchange under another's compute:
//   forward   Dispatch: norm, attention, norm, route, start sending | Experts | Combine: + residual
//   backward  Dispatch: start sending gradients | Experts | Combine: norm, attention, norm backward
// Records and gradients follow layer.h.
#pragma once

#include <memory>
#include <string>

#include "model/layers/layer.h"
#include "parallel/expert_dispatcher.h"

namespace hone::model {

struct BlockInput {
  PackView pack;
  FeedForward::MoeInput moe;
};

class Block {
 public:
  struct State {  // between the phases of one direction
    virtual ~State() = default;
  };
  using StatePtr = std::unique_ptr<State>;

  virtual ~Block() = default;
  virtual StatePtr ForwardDispatch(Context& ctx, const Tensor& x_TD, const BlockInput& input,
                                   RecordPtr* saved) = 0;
  virtual void ForwardExperts(Context& ctx, State& state) = 0;
  virtual Tensor ForwardCombine(Context& ctx, StatePtr state) = 0;
  // `input` as in the forward of this record.
  virtual StatePtr BackwardDispatch(Context& ctx, const Tensor& dy_TD, const BlockInput& input,
                                    RecordPtr saved) = 0;
  virtual void BackwardExperts(Context& ctx, State& state) = 0;
  virtual Tensor BackwardCombine(Context& ctx, StatePtr state) = 0;
  virtual Tensor Decode(Context& ctx, const Tensor& x_TD, const DecodeView& decode,
                        const FeedForward::MoeInput& moe) = 0;
  virtual FeedForward& feed_forward() = 0;

  Tensor Forward(Context& ctx, const Tensor& x_TD, const BlockInput& input, RecordPtr* saved) {
    StatePtr state = ForwardDispatch(ctx, x_TD, input, saved);
    ForwardExperts(ctx, *state);
    return ForwardCombine(ctx, std::move(state));
  }
  Tensor Backward(Context& ctx, const Tensor& dy_TD, const BlockInput& input, RecordPtr saved) {
    StatePtr state = BackwardDispatch(ctx, dy_TD, input, std::move(saved));
    BackwardExperts(ctx, *state);
    return BackwardCombine(ctx, std::move(state));
  }
};

// Block `layer` of the model: its attention and feed-forward kinds follow from the config. `prefix`
// is "model.layers.N"; `dispatcher` may be null for a dense layer.
std::unique_ptr<Block> MakeTransformerBlock(ParameterBuilder& builder, const std::string& prefix,
                                            const ModelConfig& config, bool moe,
                                            const kernels::RopeTable& rope, MlaDecode mla_decode,
                                            std::shared_ptr<parallel::ExpertDispatcher> dispatcher);

// Keeps only the input of `block` and runs its forward again in backward: the same bits.
std::unique_ptr<Block> MakeCheckpointedBlock(std::unique_ptr<Block> block);

}  // namespace hone::model
