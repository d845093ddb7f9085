#include "model/layers/transformer_block.h"

#include "kernels/elementwise/elementwise.h"
#include "model/layers/moe_block.h"

namespace hone::model {
namespace {

class TransformerBlock : public Block {
 public:
  TransformerBlock(ParameterBuilder& builder, const std::string& prefix, const ModelConfig& config,
                   bool moe, const kernels::RopeTable& rope, MlaDecode mla_decode,
                   std::shared_ptr<parallel::ExpertDispatcher> dispatcher)
      : input_norm_(builder, prefix + ".input_layernorm", config.hidden_size, config.rms_norm_eps),
        attention_(config.is_mla()
                       ? MakeMultiHeadLatentAttention(builder, prefix + ".self_attn", config, rope,
                                                      mla_decode)
                       : MakeGroupedQueryAttention(builder, prefix + ".self_attn", config, rope)),
        post_norm_(builder, prefix + ".post_attention_layernorm", config.hidden_size,
                   config.rms_norm_eps),
        feed_forward_(moe ? MakeMoeBlock(builder, prefix + ".mlp", config, std::move(dispatcher))
                          : MakeSwiGluMlp(builder, prefix + ".mlp", config.hidden_size,
                                          config.intermediate_size)) {}

  StatePtr ForwardDispatch(Context& ctx, const Tensor& x_TD, const BlockInput& input,
                           RecordPtr* saved) override;
  void ForwardExperts(Context& ctx, State& state) override {
    feed_forward_->ForwardExperts(ctx, *static_cast<ForwardState&>(state).feed_forward);
  }
  Tensor ForwardCombine(Context& ctx, StatePtr state) override;
  StatePtr BackwardDispatch(Context& ctx, const Tensor& dy_TD, const BlockInput& input,
                            RecordPtr saved) override;
  void BackwardExperts(Context& ctx, State& state) override {
    feed_forward_->BackwardExperts(ctx, *static_cast<BackwardState&>(state).feed_forward);
  }
  Tensor BackwardCombine(Context& ctx, StatePtr state) override;
  Tensor Decode(Context& ctx, const Tensor& x_TD, const DecodeView& decode,
                const FeedForward::MoeInput& moe) override;
  FeedForward& feed_forward() override { return *feed_forward_; }

 private:
  struct Saved : Record {
    Tensor x_TD, h_TD;  // inputs of the two norms
    RecordPtr attention, feed_forward;
  };
  struct ForwardState : State {
    Tensor h_TD;
    FeedForward::StatePtr feed_forward;
  };
  struct BackwardState : State {
    Tensor dy_TD;
    PackView pack;
    FeedForward::StatePtr feed_forward;
    std::unique_ptr<Saved> saved;
  };

  RmsNorm input_norm_;
  std::unique_ptr<AttentionLayer> attention_;
  RmsNorm post_norm_;
  std::unique_ptr<FeedForward> feed_forward_;
};

Block::StatePtr TransformerBlock::ForwardDispatch(Context& ctx, const Tensor& x_TD,
                                                  const BlockInput& input, RecordPtr* saved) {
  auto record = saved ? std::make_unique<Saved>() : nullptr;
  auto state = std::make_unique<ForwardState>();
  state->h_TD = attention_->Forward(ctx, input_norm_.Forward(ctx, x_TD), input.pack,
                                    saved ? &record->attention : nullptr);
  state->feed_forward =
      feed_forward_->ForwardDispatch(ctx, post_norm_.ForwardSum(ctx, state->h_TD, x_TD), input.moe,
                                     saved ? &record->feed_forward : nullptr);
  if (saved) {
    record->x_TD = x_TD;
    record->h_TD = state->h_TD;
    *saved = std::move(record);
  }
  return state;
}

Tensor TransformerBlock::ForwardCombine(Context& ctx, StatePtr base) {
  auto& state = static_cast<ForwardState&>(*base);
  Tensor y_TD = feed_forward_->ForwardCombine(ctx, std::move(state.feed_forward));
  kernels::AddInPlace(ctx, y_TD, state.h_TD);
  return y_TD;
}

Block::StatePtr TransformerBlock::BackwardDispatch(Context& ctx, const Tensor& dy_TD,
                                                   const BlockInput& input, RecordPtr saved) {
  auto state = std::make_unique<BackwardState>();
  state->dy_TD = dy_TD;
  state->pack = input.pack;
  state->saved.reset(static_cast<Saved*>(saved.release()));
  state->feed_forward =
      feed_forward_->BackwardDispatch(ctx, dy_TD, std::move(state->saved->feed_forward));
  return state;
}

Tensor TransformerBlock::BackwardCombine(Context& ctx, StatePtr base) {
  auto& state = static_cast<BackwardState&>(*base);
  Saved& saved = *state.saved;
  Tensor dn_TD = feed_forward_->BackwardCombine(ctx, std::move(state.feed_forward));
  Tensor dh_TD = post_norm_.Backward(ctx, dn_TD, saved.h_TD, &state.dy_TD);
  saved.h_TD = Tensor();
  dn_TD = attention_->Backward(ctx, dh_TD, state.pack, std::move(saved.attention));
  return input_norm_.Backward(ctx, dn_TD, saved.x_TD, &dh_TD);
}

Tensor TransformerBlock::Decode(Context& ctx, const Tensor& x_TD, const DecodeView& decode,
                                const FeedForward::MoeInput& moe) {
  Tensor h_TD = attention_->Decode(ctx, input_norm_.Forward(ctx, x_TD), decode);
  Tensor y_TD = feed_forward_->Forward(ctx, post_norm_.ForwardSum(ctx, h_TD, x_TD), moe, nullptr);
  kernels::AddInPlace(ctx, y_TD, h_TD);
  return y_TD;
}

class CheckpointedBlock : public Block {
 public:
  explicit CheckpointedBlock(std::unique_ptr<Block> block) : block_(std::move(block)) {}

  StatePtr ForwardDispatch(Context& ctx, const Tensor& x_TD, const BlockInput& input,
                           RecordPtr* saved) override {
    BlockInput first = input;
    if (saved) {
      auto record = std::make_unique<Saved>();
      record->x_TD = x_TD;
      *saved = std::move(record);
      first.moe.count = FeedForward::MoeInput::Count::kYes;
    }
    return block_->ForwardDispatch(ctx, x_TD, first, nullptr);
  }
  void ForwardExperts(Context& ctx, State& state) override { block_->ForwardExperts(ctx, state); }
  Tensor ForwardCombine(Context& ctx, StatePtr state) override {
    return block_->ForwardCombine(ctx, std::move(state));
  }
  StatePtr BackwardDispatch(Context& ctx, const Tensor& dy_TD, const BlockInput& input,
                            RecordPtr saved) override {
    BlockInput again = input;
    again.moe.count = FeedForward::MoeInput::Count::kNo;
    again.moe.routing_TK = nullptr;
    RecordPtr record;
    block_->Forward(ctx, static_cast<Saved&>(*saved).x_TD, again, &record);
    saved.reset();
    return block_->BackwardDispatch(ctx, dy_TD, again, std::move(record));
  }
  void BackwardExperts(Context& ctx, State& state) override { block_->BackwardExperts(ctx, state); }
  Tensor BackwardCombine(Context& ctx, StatePtr state) override {
    return block_->BackwardCombine(ctx, std::move(state));
  }
  Tensor Decode(Context& ctx, const Tensor& x_TD, const DecodeView& decode,
                const FeedForward::MoeInput& moe) override {
    return block_->Decode(ctx, x_TD, decode, moe);
  }
  FeedForward& feed_forward() override { return block_->feed_forward(); }

 private:
  struct Saved : Record {
    Tensor x_TD;
  };

  std::unique_ptr<Block> block_;
};

}  // namespace

std::unique_ptr<Block> MakeTransformerBlock(
    ParameterBuilder& builder, const std::string& prefix, const ModelConfig& config, bool moe,
    const kernels::RopeTable& rope, MlaDecode mla_decode,
    std::shared_ptr<parallel::ExpertDispatcher> dispatcher) {
  return std::make_unique<TransformerBlock>(builder, prefix, config, moe, rope, mla_decode,
                                            std::move(dispatcher));
}

std::unique_ptr<Block> MakeCheckpointedBlock(std::unique_ptr<Block> block) {
  return std::make_unique<CheckpointedBlock>(std::move(block));
}

}  // namespace hone::model
