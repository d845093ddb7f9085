// What every stage works with, and the loop that training stages share: resume, metrics, saves,
// stopping.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "rl/learner.h"
#include "rl/run_config.h"
#include "rl/run_directory.h"
#include "runtime/metrics.h"

namespace hone::rl {

class SamplePool;

// One a learner rank. `metrics` and the writing half of `directory` are rank 0's.
struct Environment {
  const RunConfig& config;
  RunDirectory& directory;
  Learner& learner;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  RunState& state;
  std::unique_ptr<runtime::MetricsWriter>& metrics;
  SamplePool* pool;               // null when there are no workers
  const std::atomic<bool>& stop;  // set by SIGTERM and SIGINT
  // Writes a checkpoint as a Hugging Face folder that does not exist yet (rank 0).
  std::function<void(const std::string& from, const std::string& to)> export_model = {};

  parallel::ProcessGroup& world() const { return *learner.mesh().world(); }
  bool root() const { return world().rank() == 0; }
  // True on every rank when it is set on any. Collective.
  bool AgreeToStop() const;
  // Rank 0's bytes on every rank. Collective.
  std::string FromRoot(const std::string& bytes) const;
  // The weights that a stage starts from, in the learner. Collective.
  void LoadStart(const std::string& from) const;
  // Sums over ranks in rank order. Collective.
  std::vector<double> Sum(const std::vector<double>& values) const;
};

// Where a finished stage's weights are: its last checkpoint.
std::string FinalCheckpoint(const RunDirectory& directory, const std::string& stage);
// What `from` names: a stage's final checkpoint, "" for "init", or what a path leads to
// (FolderOfPolicy). StartOf is what it is to rank 0, on every rank, for ranks may not see the same
// newest checkpoint. Collective.
std::string ResolveFrom(const Environment& env, const std::string& from);
std::string StartOf(const Environment& env, const std::string& from);

// Progress of one training stage. All methods are collective.
class TrainingLoop {
 public:
  // Begins the stage from `stage.from`, or goes on from its newest checkpoint.
  TrainingLoop(Environment& env, const StageConfig& stage, int64_t total_steps);

  int64_t step() const { return step_; }  // optimizer steps taken
  int64_t total_steps() const { return total_; }
  // What the stage put into the checkpoint it resumed from; null when it began.
  const nlohmann::json& resumed() const { return *resumed_; }
  // The folder of the weights that the stage began from, "" for the random start: once it has
  // begun the same, whatever is newest there now. Collective.
  std::string start() const { return start_ ? *start_ : StartOf(env_, stage_.from); }
  double lr() const;  // of the step to come

  // After each optimizer step: writes metrics, prints progress, saves when due. `extra` goes into
  // metrics.jsonl; `cursor` is what the stage needs to go on from here, null where it cannot
  // (between the minibatches of a rollout): then nothing is saved. Throws StoppedEarly after saving
  // when a signal came, Error when kMostSkipped steps in a row were skipped, or half
  // of the stage's.
  void FinishStep(const parallel::TrainEngine::StepResult& result, int64_t tokens,
                  const nlohmann::json& extra, const std::function<nlohmann::json()>& cursor);
  // Saves and throws StoppedEarly.
  [[noreturn]] void StopHere(const nlohmann::json& cursor);
  bool SaveDue() const;
  // Saves now unless this step was just saved.
  void Save(const nlohmann::json& cursor);
  // Called on rank 0 when a checkpoint was committed and old ones are gone, from the thread that
  // writes; so with copies of what it needs.
  void set_on_pruned(std::function<void()> on_pruned) { on_pruned_ = std::move(on_pruned); }
  // The last checkpoint, the stage's record, everything on disk.
  void Complete(const nlohmann::json& cursor);

 private:
  static constexpr int64_t kMostSkipped = 50;

  void BeginFrom(const std::string& from);
  void CutMetrics();
  void PrintProgress(const parallel::TrainEngine::StepResult& result, int64_t tokens,
                     double seconds, const nlohmann::json& extra);
  // Every rank's record says where the stage stands; rank 0 writes it when there is a checkpoint.
  StageRecord* UpdateRecord();
  void WriteRecord(const std::string& state);

  Environment& env_;
  const StageConfig& stage_;
  int64_t step_ = 0, total_ = 0, tokens_ = 0, saved_step_ = -1;
  int64_t skipped_ = 0;  // steps, up to this one
  double seconds_ = 0;
  std::chrono::steady_clock::time_point last_;
  std::shared_ptr<nlohmann::json> resumed_;
  std::optional<std::string> start_;  // older checkpoints do not say it
  std::function<void()> on_pruned_;
};

}  // namespace hone::rl
