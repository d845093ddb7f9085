#include "model/transformer_stage.h"

#include <cmath>

#include "model/transformer_stage_impl.h"

namespace hone::model {

using parallel::LossFunction;
using parallel::StageIO;

std::vector<StageOptions> SplitLayers(const ModelConfig& config, int stages,
                                      const StageOptions& base) {
  const int64_t layers = config.num_hidden_layers;
  Check<ConfigError>(stages >= 1 && stages <= layers,
                     "[pipeline] {} layers do not split into {} stages; choose at most {}", layers,
                     stages, layers);
  std::vector<StageOptions> split(stages, base);
  int64_t next = 0;
  for (int s = 0; s < stages; ++s) {
    split[s].first_layer = next;
    next += layers / stages + (s < layers % stages);
    split[s].end_layer = next;
    split[s].has_embedding = s == 0;
    split[s].has_head = s == stages - 1;
  }
  return split;
}

TransformerStage::TransformerStage(Context& ctx, const ModelConfig& config,
                                   const StageOptions& options, parallel::GroupPtr ep)
    : impl_(std::make_unique<Impl>(ctx, config, options, std::move(ep))) {}
TransformerStage::~TransformerStage() = default;

const ModelConfig& TransformerStage::config() const { return impl_->config; }
const StageOptions& TransformerStage::options() const { return impl_->options; }
bool TransformerStage::is_last() const { return impl_->head.has_value(); }

SlabIndex TransformerStage::State() {
  SlabIndex state;
  for (const auto& entry : impl_->builder.entries()) {
    state.push_back({entry.parameter->spec.slab, entry.parameter->value});
  }
  return state;
}

std::vector<Parameter*> TransformerStage::Parameters() {
  std::vector<Parameter*> parameters;
  for (const auto& entry : impl_->builder.entries()) {
    parameters.push_back(entry.parameter.get());
  }
  return parameters;
}

StageIO TransformerStage::InputBuffers(Context& ctx, const TokenBatch& batch) {
  if (impl_->embedding) return {};
  return {{"hidden", ctx.Empty({batch.tokens(), config().hidden_size}, options().dtype)}};
}

StageIO TransformerStage::Forward(Context& ctx, int microbatch, const TokenBatch& batch, StageIO in,
                                  const LossFunction* loss, bool train) {
  Check<Error>(!train || options().with_gradients,
               "[stage] training forward of a stage without gradients");
  Impl::Microbatch m = impl_->Begin(batch, train);
  Tensor x_TD = impl_->Enter(ctx, m, in);
  in.clear();
  for (size_t i = 0; i < impl_->blocks.size(); ++i) {
    x_TD = impl_->blocks[i]->Forward(ctx, x_TD, impl_->InputOf(m, static_cast<int64_t>(i)),
                                     train ? &m.records[i] : nullptr);
  }
  return impl_->Leave(ctx, microbatch, std::move(m), x_TD, loss);
}

StageIO TransformerStage::Backward(Context& ctx, int microbatch, StageIO doutput) {
  Impl::Microbatch m = impl_->TakeRecord(microbatch);
  Tensor dx_TD = impl_->EnterBackward(ctx, m, doutput);
  doutput.clear();
  for (size_t i = impl_->blocks.size(); i-- > 0;) {
    dx_TD = impl_->blocks[i]->Backward(ctx, dx_TD, impl_->InputOf(m, static_cast<int64_t>(i)),
                                       std::move(m.records[i]));
  }
  return impl_->LeaveBackward(ctx, m, dx_TD);
}

// Block i of the forward runs beside block L−1−i of the backward. Each starts an exchange, and the
// other's compute runs while it is under way.
std::pair<StageIO, StageIO> TransformerStage::ForwardBackward(Context& ctx, int forward_microbatch,
                                                              const TokenBatch& batch, StageIO in,
                                                              const LossFunction* loss,
                                                              int backward_microbatch,
                                                              StageIO doutput) {
  if (!impl_->CanOverlap()) {
    return PipelineStage::ForwardBackward(ctx, forward_microbatch, batch, std::move(in), loss,
                                          backward_microbatch, std::move(doutput));
  }
  Impl::Microbatch f = impl_->Begin(batch, true);
  Impl::Microbatch b = impl_->TakeRecord(backward_microbatch);
  Tensor dx_TD = impl_->EnterBackward(ctx, b, doutput);
  Tensor x_TD = impl_->Enter(ctx, f, in);
  in.clear();
  doutput.clear();
  auto& blocks = impl_->blocks;
  const size_t n = blocks.size();
  for (size_t i = 0; i < n; ++i) {
    Block &forward = *blocks[i], &backward = *blocks[n - 1 - i];
    const int64_t fi = static_cast<int64_t>(i), bi = static_cast<int64_t>(n - 1 - i);
    auto backward_state = backward.BackwardDispatch(ctx, dx_TD, impl_->InputOf(b, bi),
                                                    std::move(b.records[n - 1 - i]));
    auto forward_state = forward.ForwardDispatch(ctx, x_TD, impl_->InputOf(f, fi), &f.records[i]);
    backward.BackwardExperts(ctx, *backward_state);
    forward.ForwardExperts(ctx, *forward_state);
    dx_TD = backward.BackwardCombine(ctx, std::move(backward_state));
    x_TD = forward.ForwardCombine(ctx, std::move(forward_state));
  }
  StageIO out = impl_->Leave(ctx, forward_microbatch, std::move(f), x_TD, loss);
  return {std::move(out), impl_->LeaveBackward(ctx, b, dx_TD)};
}

parallel::PipelineStage::Outcome TransformerStage::TakeOutcome(int microbatch) {
  auto node = impl_->outcomes.extract(microbatch);
  Check<Error>(!node.empty(), "[stage] microbatch {} has no outcome", microbatch);
  return std::move(node.mapped());
}

std::vector<int32_t> TransformerStage::TakeRouting(int microbatch) {
  auto node = impl_->routing_TLK.extract(microbatch);
  Check<Error>(!node.empty(), "[stage] microbatch {} has no recorded routing", microbatch);
  return std::move(node.mapped());
}

void TransformerStage::BeginStep(bool keep_head_output) {
  impl_->keep_head_output = keep_head_output;
  impl_->in_flight.clear();
  impl_->outcomes.clear();
  impl_->routing_TLK.clear();
}

void TransformerStage::EndStep(Context&, const std::function<void(std::vector<double>&)>& sum) {
  for (auto& block : impl_->blocks) block->feed_forward().UpdateBalance(sum);
  if (impl_->head && impl_->head->mtp()) impl_->head->mtp()->feed_forward().UpdateBalance(sum);
}

}  // namespace hone::model
