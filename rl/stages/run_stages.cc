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

bool Evaluates(const RunConfig& config, const StageConfig& stage) {
  return Measured(stage.kind) &&
         (config.evaluate_after_every_stage || stage.kind == StageKind::kEvaluate);
}

bool CanMeasure(const Environment& env, const EvaluationSuite& suite) {
  return suite.is_text() || env.pool != nullptr;
}

// Those to be measured after the stage that are not yet.
std::vector<const EvaluationSuite*> MissingSuites(const Environment& env,
                                                  const StageConfig& stage) {
  const auto& measured = env.state.Find(stage.name)->evaluations;
  std::string missing;
  for (const EvaluationSuite& suite : env.config.suites) {
    bool wanted = Evaluates(env.config, stage) && suite.After(stage.name) &&
                  CanMeasure(env, suite) && env.config.HasText(suite, stage);
    missing += wanted && measured.count(suite.name) == 0 ? '1' : '0';
  }
  missing = env.FromRoot(missing);
  std::vector<const EvaluationSuite*> suites;
  for (size_t i = 0; i < missing.size(); ++i) {
    if (missing[i] == '1') suites.push_back(&env.config.suites[i]);
  }
  return suites;
}

// The stage and then its suites, of both what is not done yet. Every rank asks rank 0, whose view
// of the shared folder decides.
void RunStage(Environment& env, const StageConfig& stage) {
  bool done = env.FromRoot(env.state.Find(stage.name)->state) == "done";
  if (!done) {
    RunOne(env, stage);
    StageRecord* record = env.state.Find(stage.name);
    record->state = "done";
    if (env.root()) env.directory.WriteState(env.state);
  }
  const std::vector<const EvaluationSuite*> missing = MissingSuites(env, stage);
  if (done && !missing.empty()) env.LoadStart(stage.name);
  for (const EvaluationSuite* suite : missing) {
    env.state.Find(stage.name)->evaluations[suite->name] = RunSuite(env, *suite, stage.name);
    if (env.root()) env.directory.WriteState(env.state);
  }
}

void SayWhatIsNotMeasured(const Environment& env) {
  if (!env.root() || !env.config.evaluate_after_every_stage) return;
  for (const EvaluationSuite& suite : env.config.suites) {
    if (CanMeasure(env, suite)) continue;
    fmt::print(stderr, "evaluate: suite '{}' samples and is left out: rollout.workers is 0\n",
               suite.name);
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
  const StageConfig& last = FindLastStage(env.config, until);
  PrepareState(env);
  if (env.root()) env.directory.WriteState(env.state);
  SayWhatIsNotMeasured(env);
  for (const StageConfig& stage : env.config.stages) {
    RunStageNamingPlace(env, stage);
    if (&stage == &last) break;
  }
}

}  // namespace hone::rl
