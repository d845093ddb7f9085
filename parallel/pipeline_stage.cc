#include "parallel/pipeline_stage.h"

namespace hone::parallel {

std::pair<StageIO, StageIO> PipelineStage::Overlap(Context& ctx, int forward_microbatch,
                                                   const TokenBatch& batch, StageIO in,
                                                   const LossFunction* loss,
                                                   PipelineStage& backward_stage,
                                                   int backward_microbatch, StageIO doutput) {
  StageIO out = Forward(ctx, forward_microbatch, batch, std::move(in), loss, /*train=*/true);
  StageIO dinput = backward_stage.Backward(ctx, backward_microbatch, std::move(doutput));
  return {std::move(out), std::move(dinput)};
}

void PipelineStage::GradientsDone(Context& ctx, const std::vector<Parameter*>& parameters) {
  auto report = [this, parameters] {
    if (!listener_) return;
    for (const Parameter* parameter : parameters) listener_(*parameter);
  };
  // Queued behind the weight halves that were pushed before it; the listener is read when it runs,
  // since only the last microbatch has one.
  if (ctx.weight_gradients != nullptr) {
    ctx.weight_gradients->push_back(report);
  } else {
    report();
  }
}

}  // namespace hone::parallel
