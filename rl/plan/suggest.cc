// Trying layouts one by one: there are some hundreds at most, and each takes milliseconds.
#include <algorithm>
#include <set>

#include "rl/plan/plan.h"

namespace hone::rl {
namespace {

using parallel::ScheduleKind;

std::vector<int> Divisors(int n, int64_t at_most) {
  std::vector<int> divisors;
  for (int d = 1; d <= n && d <= at_most; ++d) {
    if (n % d == 0) divisors.push_back(d);
  }
  return divisors;
}

std::vector<parallel::PipelineConfig> Pipelines(const parallel::PipelineConfig& given, int pp) {
  if (pp == 1) return {{ScheduleKind::k1F1B, 1}};
  std::vector<parallel::PipelineConfig> all = {{ScheduleKind::k1F1B, 1},
                                               {ScheduleKind::kInterleaved, 2},
                                               {ScheduleKind::kZbH1, 1},
                                               {ScheduleKind::kDualPipeV, 1}};
  const bool known = std::any_of(all.begin(), all.end(), [&](const auto& p) {
    return p.schedule == given.schedule && p.chunks == given.chunks;
  });
  if (!known) all.push_back(given);
  return all;
}

std::vector<Layout> Candidates(const model::ModelConfig& model, const Layout& like, int ranks) {
  std::vector<Layout> all;
  for (int pp : Divisors(ranks, model.num_hidden_layers)) {
    for (int ep : Divisors(ranks / pp, model.is_moe() ? model.n_routed_experts : 1)) {
      if (model.is_moe() && model.n_routed_experts % ep != 0) continue;
      for (const parallel::PipelineConfig& pipeline : Pipelines(like.pipeline, pp)) {
        if (pp * pipeline.chunks_per_rank() > model.num_hidden_layers) continue;
        for (bool checkpointing : {false, true}) {
          Layout layout = like;
          layout.mesh = {pp, ranks / pp, ep};
          layout.pipeline = pipeline;
          layout.activation_checkpointing = checkpointing;
          all.push_back(layout);
        }
      }
    }
  }
  return all;
}

}  // namespace

std::vector<Suggestion> SuggestLayouts(const RunConfig& config, const Layout& like, int ranks,
                                       int64_t bytes, const MachineModel& machine) {
  std::vector<Suggestion> suggestions;
  for (const Layout& layout : Candidates(config.model, like, ranks)) {
    RunPlan plan;
    try {
      plan = PlanRun(config, layout, machine);
    } catch (const ConfigError&) {
      continue;  // the batch does not split that way, or is too small for the schedule
    }
    if (plan.stages.empty() || (bytes > 0 && plan.PeakBytes() > bytes)) continue;
    const StagePlan& slowest = *std::max_element(
        plan.stages.begin(), plan.stages.end(),
        [](const auto& a, const auto& b) { return a.estimate.seconds < b.estimate.seconds; });
    suggestions.push_back({layout, plan.PeakBytes(), slowest.estimate.seconds,
                           slowest.estimate.tokens_per_second, slowest.estimate.bubble,
                           slowest.name});
  }
  std::stable_sort(suggestions.begin(), suggestions.end(),
                   [](const auto& a, const auto& b) { return a.step_seconds < b.step_seconds; });
  return suggestions;
}

}  // namespace hone::rl
