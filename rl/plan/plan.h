// What a run needs and how fast it would be, before anything is made: `hone plan` and `hone check`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rl/plan/memory.h"
#include "rl/plan/speed.h"

namespace hone::rl {

// A run config without its data: sources are not opened, since a plan reads none. `path` may also
// be a Hugging Face folder or a config.json; then the run is one pretraining stage in bf16.
RunConfig LoadPlanConfig(const std::string& path, const std::vector<std::string>& overrides);

// The optimizer step of a stage that trains, for dp replicas. Packs are taken to be full, and
// sequences as long as they may be: it is an upper bound. ConfigError where the packs do not split.
StepShape StepOf(const RunConfig& config, const StageConfig& stage, int dp);

struct StagePlan {
  std::string name, kind;
  StepShape step;
  std::vector<RankMemory> ranks;  // one a pipeline rank
  StepEstimate estimate;
  const RankMemory& Fullest() const;
};

struct RunPlan {
  Layout layout;
  std::vector<StagePlan> stages;  // those that train, in order
  // The most that any rank needs in any stage.
  int64_t PeakBytes() const;
};
RunPlan PlanRun(const RunConfig& config, const Layout& layout, const MachineModel& machine);

// Layouts of `ranks` ranks whose every stage fits into `bytes` a rank, the fastest first: by the
// tokens a second of the stage whose step takes longest. With bytes 0 everything fits.
struct Suggestion {
  Layout layout;
  int64_t peak_bytes = 0;
  double step_seconds = 0, tokens_per_second = 0, bubble = 0;
  std::string stage;  // that they are of
};
std::vector<Suggestion> SuggestLayouts(const RunConfig& config, const Layout& like, int ranks,
                                       int64_t bytes, const MachineModel& machine);

// What a config needs of the machine that it is run on as a whole, by `hone run`; or, when
// `rank_bytes` is given, of each rank's device with its part of the workers, if they are on
// devices. Ranks on devices of which nothing is said fit.
struct FitReport {
  enum class Verdict { kFits, kTight, kDoesNotFit };  // kTight: within the estimate's error
  Verdict verdict = Verdict::kFits;
  std::string text;  // numbers, and what to change; empty when it fits
};
FitReport CheckFit(const RunConfig& config, int64_t rank_bytes, int64_t machine_bytes);

// "1.23 GB"
std::string GigaBytes(int64_t bytes);

}  // namespace hone::rl
