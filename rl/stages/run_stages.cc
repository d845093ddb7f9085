#include <nlohmann/json.hpp>

#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"

namespace hone::rl {
namespace {

// One record a stage, in the config's order; what an earlier start recorded is kept.
void PrepareState(Environment& env) {
  RunState recorded = env.directory.ReadState();
  env.state.stages.clear();
  for (const StageConfig& stage : env.config.stages) {
    StageRecord record;
    if (StageRecord* old = recorded.Find(stage.name)) record = *old;
    record.name = stage.name;
    record.kind = StageKindNames()[static_cast<int>(stage.kind)];
    record.from = stage.from;
    env.state.stages.push_back(record);
  }
}

void RunOne(Environment& env, const StageConfig& stage) {
  switch (stage.kind) {
    case StageKind::kPretrain:
    case StageKind::kSft:
    case StageKind::kDistill:
      return RunSupervised(env, stage);
    case StageKind::kRewardModel:
      return RunRewardModel(env, stage);
    case StageKind::kGrpo:
      return RunGrpo(env, stage);
    case StageKind::kRejectionSampling:
      return RunRejectionSampling(env, stage);
    case StageKind::kExport:
      return RunExport(env, stage);
    case StageKind::kEvaluate:
      return env.LoadStart(stage.from);
  }
}

void EvaluateStage(Environment& env, const StageConfig& stage) {
  StageRecord* record = env.state.Find(stage.name);
  for (const EvaluationSuite& suite : env.config.suites) {
    if (!suite.After(stage.name) || record->evaluations.count(suite.name)) continue;
    record->evaluations[suite.name] = RunSuite(env, suite, stage.name);
    if (env.root()) env.directory.WriteState(env.state);
  }
}

// The stage and then its suites, of both what is not done yet.
void RunStage(Environment& env, const StageConfig& stage) {
  // Every rank asks rank 0, whose view of the shared folder decides.
  bool done = env.FromRoot(env.state.Find(stage.name)->state) == "done";
  bool no_policy = stage.kind == StageKind::kRejectionSampling ||
                   stage.kind == StageKind::kRewardModel || stage.kind == StageKind::kExport;
  bool evaluate = env.pool != nullptr && !no_policy &&
                  (env.config.evaluate_after_every_stage || stage.kind == StageKind::kEvaluate);
  if (!done) {
    RunOne(env, stage);
    StageRecord* record = env.state.Find(stage.name);
    record->state = "done";
    if (env.root()) env.directory.WriteState(env.state);
  }
  bool evaluated = true;
  for (const EvaluationSuite& suite : env.config.suites) {
    bool wanted = suite.After(stage.name);
    if (wanted && !env.state.Find(stage.name)->evaluations.count(suite.name)) evaluated = false;
  }
  evaluated = env.FromRoot(evaluated ? "1" : "0") == "1";
  if (evaluate && !evaluated) {
    if (done) env.LoadStart(stage.name);
    EvaluateStage(env, stage);
  }
}

// RunStage, whose errors of communication, which name rank and operation, also say where the run
// stood.
void RunStageNamingPlace(Environment& env, const StageConfig& stage) {
  auto placed = [&](const CommError& e) {
    return fmt::format("{}; in stage '{}' after step {}", e.what(), stage.name,
                       env.state.Find(stage.name)->step);
  };
  try {
    RunStage(env, stage);
  } catch (const TimeoutError& e) {
    throw TimeoutError(placed(e));
  } catch (const CommError& e) {
    throw CommError(placed(e));
  }
}

}  // namespace

void RunStages(Environment& env, const std::string& until) {
  Check<ConfigError>(until.empty() || env.config.FindStage(until) != nullptr,
                     "[run] --until {}: there is no such stage", until);
  PrepareState(env);
  if (env.root()) env.directory.WriteState(env.state);
  for (const StageConfig& stage : env.config.stages) {
    RunStageNamingPlace(env, stage);
    if (stage.name == until) break;
  }
}

}  // namespace hone::rl
