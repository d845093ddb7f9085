// Shared and routed experts of one block (DeepSeek-V3, arXiv 2412.19437 §2.1.2; Qwen3-MoE).
#pragma once

#include <memory>
#include <string>

#include "model/layers/layer.h"
#include "parallel/expert_dispatcher.h"

namespace hone::model {

// Experts are stacked: PREFIX.experts.{gate,up,down}_proj.weight of [E, F, D] or [E, D, F]; the router is
// PREFIX.gate.weight, its bias buffer PREFIX.gate.e_score_correction_bias (V3).
std::unique_ptr<FeedForward> MakeMoeBlock(ParameterBuilder& builder, const std::string& prefix,
                                          const ModelConfig& config,
                                          std::shared_ptr<parallel::ExpertDispatcher> dispatcher);

}  // namespace hone::model
