#include "model/transformer_stage.h"

#include <algorithm>
#include <utility>

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
  GradientsDone(ctx, impl_->head_parameters);
  doutput.clear();
  for (size_t i = impl_->blocks.size(); i-- > 0;) {
    dx_TD = impl_->blocks[i]->Backward(ctx, dx_TD, impl_->InputOf(m, static_cast<int64_t>(i)),
                                       std::move(m.records[i]));
    GradientsDone(ctx, impl_->block_parameters[i]);
  }
  StageIO dinput = impl_->LeaveBackward(ctx, m, dx_TD);
  GradientsDone(ctx, impl_->embedding_parameters);
  return dinput;
}

bool TransformerStage::overlaps_forward_backward() const { return impl_->expert_ranks > 1; }

std::pair<StageIO, StageIO> TransformerStage::Overlap(Context& ctx, int forward_microbatch,
                                                      const TokenBatch& batch, StageIO in,
                                                      const LossFunction* loss,
                                                      PipelineStage& backward_stage,
                                                      int backward_microbatch, StageIO doutput) {
  auto* other = dynamic_cast<TransformerStage*>(&backward_stage);
  if (!other || (other == this && impl_->MustNotOverlapItself())) {
    return PipelineStage::Overlap(ctx, forward_microbatch, batch, std::move(in), loss,
                                  backward_stage, backward_microbatch, std::move(doutput));
  }
  Impl &fi = *impl_, &bi = *other->impl_;
  Impl::Microbatch f = fi.Begin(batch, true), b = bi.TakeRecord(backward_microbatch);
  Tensor dx_TD = bi.EnterBackward(ctx, b, doutput), x_TD = fi.Enter(ctx, f, in);
  in.clear();
  doutput.clear();
  const size_t forwards = fi.blocks.size(), backwards = bi.blocks.size();
  for (size_t i = 0; i < std::max(forwards, backwards); ++i) {
    const bool has_forward = i < forwards, has_backward = i < backwards;
    const size_t back = has_backward ? backwards - 1 - i : 0;
    Block::StatePtr forward, backward;
    if (has_backward) {
      backward = bi.blocks[back]->BackwardDispatch(
          ctx, dx_TD, bi.InputOf(b, static_cast<int64_t>(back)), std::move(b.records[back]));
    }
    if (has_forward) {
      forward = fi.blocks[i]->ForwardDispatch(ctx, x_TD, fi.InputOf(f, static_cast<int64_t>(i)),
                                              &f.records[i]);
    }
    if (has_backward) bi.blocks[back]->BackwardExperts(ctx, *backward);
    if (has_forward) fi.blocks[i]->ForwardExperts(ctx, *forward);
    if (has_backward) dx_TD = bi.blocks[back]->BackwardCombine(ctx, std::move(backward));
    if (has_forward) x_TD = fi.blocks[i]->ForwardCombine(ctx, std::move(forward));
  }
  StageIO out = fi.Leave(ctx, forward_microbatch, std::move(f), x_TD, loss);
  return {std::move(out), bi.LeaveBackward(ctx, b, dx_TD)};
}

parallel::PipelineStage::Outcome TransformerStage::TakeOutcome(int microbatch) {
  auto node = impl_->outcomes.extract(microbatch);
  Check<Error>(!node.empty(), "[stage] microbatch {} has no outcome", microbatch);
  return std::move(node.mapped());
}

parallel::PipelineStage::Outcome TransformerStage::TakeAuxiliary() {
  return std::exchange(impl_->auxiliary, Outcome{});
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
  impl_->auxiliary = Outcome{};
  impl_->routing_TLK.clear();
  for (auto& block : impl_->blocks) block->feed_forward().BeginStep();
  if (impl_->head && impl_->head->mtp()) impl_->head->mtp()->feed_forward().BeginStep();
}

void TransformerStage::EndStep(Context&, const std::function<void(std::vector<double>&)>& sum) {
  for (auto& block : impl_->blocks) block->feed_forward().UpdateBalance(sum);
  if (impl_->head && impl_->head->mtp()) impl_->head->mtp()->feed_forward().UpdateBalance(sum);
}

}  // namespace hone::model
