#include "rl/stages/environment.h"

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "parallel/comm/process_group.h"
#include "rl/loaded_model.h"
#include "rl/stages/peak_memory.h"
#include "runtime/json.h"

namespace hone::rl {

using nlohmann::json;

bool Environment::AgreeToStop() const {
  for (const std::string& s : world().AllGatherBytes(stop.load() ? "1" : "0")) {
    if (s == "1") return true;
  }
  return false;
}

std::string Environment::FromRoot(const std::string& bytes) const {
  return world().AllGatherBytes(root() ? bytes : "")[0];
}

void Environment::LoadStart(const std::string& from) const {
  const std::string path = StartOf(*this, from);
  if (path.empty()) {
    learner.Initialize();
  } else {
    learner.LoadModel(path);
  }
  if (!learner.in_stage()) learner.BeginStage({});  // to evaluate, or to check
  learner.SelfCheck();
}

std::vector<double> Environment::Sum(const std::vector<double>& values) const {
  std::string mine(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
  std::vector<double> total(values.size(), 0.0);
  for (const std::string& bytes : world().AllGatherBytes(mine)) {
    Check<CommError>(bytes.size() == mine.size(),
                     "[sum] ranks disagree on how many values there are");
    for (size_t i = 0; i < total.size(); ++i) {
      double value;
      std::memcpy(&value, bytes.data() + i * sizeof(double), sizeof value);
      total[i] += value;
    }
  }
  return total;
}

std::string FinalCheckpoint(const RunDirectory& directory, const std::string& stage) {
  std::string dir = directory.checkpoints(stage);
  auto steps = runtime::ListCheckpointSteps(directory.fs(), dir);
  Check<CheckpointError>(!steps.empty(), "[run] stage '{}' is done but {} holds no checkpoint",
                         stage, dir);
  return dir + "/" + runtime::CheckpointStepName(steps.back());
}

std::string ResolveFrom(const Environment& env, const std::string& from) {
  if (from == "init") return env.config.hf;
  if (const StageConfig* stage = env.config.FindStage(from)) {
    return Trains(stage->kind) ? FinalCheckpoint(env.directory, from)
                               : ResolveFrom(env, stage->from);
  }
  return FolderOfPolicy(from);
}

std::string StartOf(const Environment& env, const std::string& from) {
  return env.FromRoot(env.root() ? ResolveFrom(env, from) : "");
}

TrainingLoop::TrainingLoop(Environment& env, const StageConfig& stage, int64_t total_steps)
    : env_(env), stage_(stage), total_(total_steps), resumed_(std::make_shared<json>()) {
  env_.learner.ctx().allocator()->ResetPeaks();
  bool other_loss = stage.kind == StageKind::kGrpo || stage.kind == StageKind::kRewardModel;
  env_.learner.BeginStage(stage.optimizer,
                          other_loss ? Learner::Mtp::kFrozen : Learner::Mtp::kTrained);
  std::string dir = env_.directory.checkpoints(stage.name);
  // Rank 0 looks, so that all ranks resume from the same place.
  auto steps = runtime::ListCheckpointSteps(env_.directory.fs(), dir);
  int64_t newest = std::stoll(env_.FromRoot(std::to_string(steps.empty() ? -1 : steps.back())));
  if (newest >= 0) {
    const std::string folder = dir + "/" + runtime::CheckpointStepName(newest);
    const json metadata = runtime::ParseJson<CheckpointError>(env_.learner.Load(folder), folder);
    step_ = metadata.at("step");
    tokens_ = metadata.at("tokens");
    seconds_ = metadata.at("seconds");
    // Not step_: a step whose gradient was not finite is no step of the optimizer.
    env_.learner.engine().optimizer().set_step(metadata.at("optimizer_step"));
    *resumed_ = metadata.at("cursor");
    if (metadata.contains("from")) start_ = metadata["from"];
    if (metadata.contains("from_here")) {
      start_ = env_.directory.root() + metadata["from_here"].get<std::string>();
    }
    saved_step_ = step_;
  } else {
    BeginFrom(stage.from);
  }
  env_.learner.SelfCheck();
  UpdateRecord();
  if (env_.root()) {
    CutMetrics();
    WriteRecord("running");
  }
  last_ = std::chrono::steady_clock::now();
}

// Takes out the lines of steps that are to be taken again. Lines of other stages may stand before,
// between and behind them: the stages of a config may change between two starts.
void TrainingLoop::CutMetrics() {
  env_.metrics->Keep([&](std::string_view line) {
    json metrics = json::parse(line, nullptr, /*allow_exceptions=*/false);
    return !metrics.is_object() || metrics.value("stage", "") != stage_.name ||
           metrics.value("step", int64_t{0}) <= step_;
  });
}

void TrainingLoop::BeginFrom(const std::string& from) {
  start_ = StartOf(env_, from);
  if (start_->empty()) {
    env_.learner.Initialize();
  } else {
    const StageConfig* before = env_.config.FindStage(from);
    bool fresh = stage_.kind == StageKind::kRewardModel &&
                 (before == nullptr || before->kind != StageKind::kRewardModel);
    env_.learner.LoadModel(*start_, fresh ? Learner::ValueHead::kFresh : Learner::ValueHead::kLoad);
  }
  env_.learner.engine().optimizer().Reset();
}

double TrainingLoop::lr() const { return stage_.lr.At(step_ + 1, total_); }

void TrainingLoop::FinishStep(const parallel::TrainEngine::StepResult& result, int64_t tokens,
                              const json& extra, const std::function<json()>& cursor) {
  double rate = lr();
  ++step_;
  tokens_ += tokens;
  auto now = std::chrono::steady_clock::now();
  double seconds = std::chrono::duration<double>(now - last_).count();
  last_ = now;
  seconds_ += seconds;
  UpdateRecord();
  if (env_.root()) {
    json line = {{"stage", stage_.name},
                 {"step", step_},
                 {"loss", result.loss},
                 {"grad_norm", result.gradient_norm},
                 {"lr", rate},
                 {"tokens", tokens},
                 {"seconds", std::round(seconds * 1e4) / 1e4}};
    if (result.skipped) line["skipped"] = true;
    line.update(extra);
    env_.metrics->Write(line.dump());
    PrintProgress(result, tokens, seconds, extra);
  }
  skipped_ = result.skipped ? skipped_ + 1 : 0;
  if (skipped_ >= std::clamp<int64_t>(total_ / 2, 1, kMostSkipped)) {
    throw Error(fmt::format(
        "[run] stage '{}': the gradients of steps {} to {} are not finite, so nothing is learnt; "
        "its last checkpoint is of step {}. Go on from an earlier one with a lower learning rate",
        stage_.name, step_ - skipped_ + 1, step_, saved_step_));
  }
  if (!cursor) return;
  if (env_.AgreeToStop()) StopHere(cursor());
  if (SaveDue()) Save(cursor());
}

// What spoilt the weights may already be saved: no more of the checkpoints before it shall go.
bool TrainingLoop::SaveDue() const {
  return skipped_ == 0 &&
         step_ / stage_.save_every > std::max<int64_t>(0, saved_step_) / stage_.save_every;
}

void TrainingLoop::StopHere(const json& cursor) {
  Save(cursor);
  env_.learner.WaitForSave();
  throw StoppedEarly(fmt::format(
      "[run] stopped in stage '{}' after step {}; the same command goes on", stage_.name, step_));
}

void TrainingLoop::Save(const json& cursor) {
  if (saved_step_ == step_) return;
  json metadata = {{"stage", stage_.name},
                   {"step", step_},
                   {"optimizer_step", env_.learner.engine().optimizer().step()},
                   {"tokens", tokens_},
                   {"seconds", seconds_},
                   {"cursor", cursor}};
  if (start_) {  // a run's own folders move with it
    const std::string& root = env_.directory.root();
    const bool here = start_->starts_with(root + "/");
    metadata[here ? "from_here" : "from"] = here ? start_->substr(root.size()) : *start_;
  }
  if (env_.root()) {
    env_.directory.CheckFence();
    env_.metrics->Sync();
  }
  std::string dir = env_.directory.checkpoints(stage_.name);
  auto& fs = env_.directory.fs();
  std::function<void()> prune;
  if (env_.root()) {
    prune = [&fs, dir, train = env_.config.train, on_pruned = on_pruned_] {
      runtime::PruneCheckpoints(fs, dir, train.keep_last, train.keep_every);
      if (on_pruned) on_pruned();
    };
  }
  env_.learner.Save(dir + "/" + runtime::CheckpointStepName(step_), metadata.dump(), prune);
  saved_step_ = step_;
  if (env_.root()) WriteRecord("running");
}

void TrainingLoop::Complete(const json& cursor) {
  Save(cursor);
  env_.learner.WaitForSave();
  env_.state.Find(stage_.name)->peak_bytes = GatherPeakBytes(env_.learner);
  if (env_.root()) WriteRecord("done");
}

StageRecord* TrainingLoop::UpdateRecord() {
  StageRecord* record = env_.state.Find(stage_.name);
  record->step = step_;
  record->steps = total_;
  record->tokens = tokens_;
  record->seconds = seconds_;
  return record;
}

void TrainingLoop::WriteRecord(const std::string& state) {
  UpdateRecord()->state = state;
  env_.directory.WriteState(env_.state);
}

void TrainingLoop::PrintProgress(const parallel::TrainEngine::StepResult& result, int64_t tokens,
                                 double seconds, const json& extra) {
  double rate = static_cast<double>(tokens) / std::max(seconds, 1e-9);
  double remaining = static_cast<double>(total_ - step_) * seconds_ / static_cast<double>(step_);
  std::string more;
  for (const char* key : {"reward", "accuracy", "completion_tokens", "heldout_loss"}) {
    if (extra.contains(key)) more += fmt::format("  {} {:.3f}", key, extra[key].get<double>());
  }
  if (result.skipped) more += "  skipped";
  fmt::print(stderr, "{} {}/{}  loss {:.4f}{}  |g| {:.3f}  {:.0f} tokens/s  ETA {:.0f} s\n",
             stage_.name, step_, total_, result.loss, more, result.gradient_norm, rate, remaining);
}

}  // namespace hone::rl
