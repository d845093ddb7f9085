#include <algorithm>

#include "rl/plan/plan.h"

namespace hone::rl {
namespace {

constexpr double kEstimateError = 0.1;  // of the total; tests/rl/plan_memory_test.cc

std::string Parts(const RankMemory& memory) {
  std::string text;
  for (int i = 0; i < runtime::kMemoryCategoryCount; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    if (memory[category] == 0) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", MemoryCategoryName(category),
                        GigaBytes(memory[category]));
  }
  return text;
}

// By what takes most.
std::string WhatHelps(const RunConfig& config, const RankMemory& memory) {
  const auto largest = static_cast<MemoryCategory>(
      std::max_element(memory.bytes.begin(), memory.bytes.end()) - memory.bytes.begin());
  switch (largest) {
    case MemoryCategory::kActivations:
      return config.train.activation_checkpointing
                 ? "smaller batch.pack_tokens, or more pipeline ranks (mesh.pp)"
                 : "train.activation_checkpointing: true, or smaller batch.pack_tokens";
    case MemoryCategory::kOptimizer:
      return "more replicas (mesh.dp, over which the optimizer's state is cut), "
             "optimizer.moments: bf16, or on GPUs optimizer.offload: host";
    case MemoryCategory::kKvCache:
      return "rollout.cache_pages, or a smaller rollout.max_batch";
    default:
      return config.model.is_moe() ? "more pipeline ranks (mesh.pp) or expert ranks (mesh.ep)"
                                   : "more pipeline ranks (mesh.pp), or train.dtype: bf16";
  }
}

FitReport::Verdict Judge(int64_t needed, int64_t there) {
  if (needed <= there) return FitReport::Verdict::kFits;
  const double least = static_cast<double>(needed) * (1 - kEstimateError);
  return least > static_cast<double>(there) ? FitReport::Verdict::kDoesNotFit
                                            : FitReport::Verdict::kTight;
}

const StagePlan& Largest(const RunPlan& plan) {
  return *std::max_element(
      plan.stages.begin(), plan.stages.end(),
      [](const auto& a, const auto& b) { return a.Fullest().total < b.Fullest().total; });
}

std::string OfStage(const StagePlan& stage) {
  const RankMemory& fullest = stage.Fullest();
  return fmt::format("stage '{}' needs {} on pipeline rank {} ({})", stage.name,
                     GigaBytes(fullest.total), &fullest - stage.ranks.data(), Parts(fullest));
}

}  // namespace

FitReport CheckFit(const RunConfig& config, int64_t rank_bytes, int64_t machine_bytes) {
  FitReport report;
  const RunPlan plan = PlanRun(config, LayoutOf(config, rank_bytes == 0), MachineModel());
  if (plan.stages.empty()) return report;
  const StagePlan& largest = Largest(plan);
  const RankMemory worker = EstimateWorkerMemory(config);
  if (rank_bytes > 0) {
    // Ranks and workers both take devices in turn. Where memory has turns too the plan has them.
    const RolloutConfig& r = config.rollout;
    const bool shared = r.device == Device::Type::kCuda && !r.colocated;
    const int64_t workers =
        shared ? (r.workers + config.mesh.ranks() - 1) / config.mesh.ranks() : 0;
    const int64_t beside = workers * worker.total;
    report.verdict = Judge(plan.PeakBytes() + beside, rank_bytes);
    if (report.verdict == FitReport::Verdict::kFits) return report;
    const RankMemory& fullest = largest.Fullest();
    report.text = fmt::format(
        "{}{}; a rank has {}. What helps: {}", OfStage(largest),
        beside > 0 ? fmt::format(", and {} worker{} on its device {} ({} each)", workers,
                                 workers == 1 ? "" : "s", GigaBytes(beside), Parts(worker))
                   : "",
        GigaBytes(rank_bytes), WhatHelps(config, beside > fullest.total ? worker : fullest));
    return report;
  }
  if (config.train.device == Device::Type::kCuda) return report;  // this machine's is not asked for
  int64_t learners = 0;
  for (const RankMemory& rank : largest.ranks) learners += rank.total * config.mesh.dp;
  const int64_t beside = config.rollout.colocated ? 0 : config.rollout.workers;  // of the ranks
  const int64_t pool =
      config.rollout.workers > 0 ? beside * worker.total + EstimatePublishedBytes(config) : 0;
  report.verdict = Judge(learners + pool, machine_bytes);
  if (report.verdict == FitReport::Verdict::kFits) return report;
  const bool workers_weigh_more = pool > learners;
  report.text = fmt::format(
      "{} learner ranks need {}{}, and this machine has {}: {}. What helps: {}",
      config.mesh.ranks(), GigaBytes(learners),
      pool > 0 ? fmt::format(" and {} rollout workers {}", config.rollout.workers, GigaBytes(pool))
               : "",
      GigaBytes(machine_bytes),
      workers_weigh_more ? fmt::format("a worker takes {}", Parts(worker)) : OfStage(largest),
      WhatHelps(config, workers_weigh_more ? worker : largest.Fullest()));
  return report;
}

}  // namespace hone::rl
