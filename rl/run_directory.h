// The folder of a run: what it is, where it stands, and who may write to it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/file_system.h"

namespace hone::rl {

// What the evaluation of one suite after a stage gave. "se" is the standard error of an accuracy.
using EvaluationScores = std::map<std::string, double>;

struct StageRecord {
  std::string name, kind, from;
  std::string state = "waiting";  // waiting running done
  int64_t step = 0, steps = 0;
  int64_t tokens = 0;
  double seconds = 0;
  std::map<std::string, EvaluationScores> evaluations;  // by suite
  // Highest bytes of each category and of the total since the stage began or went on: one entry a
  // pipeline rank, of the replica that held most.
  std::vector<std::map<std::string, int64_t>> peak_bytes;
};

struct RunState {
  std::vector<StageRecord> stages;
  StageRecord* Find(const std::string& name);
};

class RunDirectory {
 public:
  RunDirectory(FileSystem& fs, std::string root);

  const std::string& root() const { return root_; }
  std::string config() const { return root_ + "/config.yaml"; }
  std::string checkpoints(const std::string& stage) const {
    return root_ + "/checkpoints/" + stage;
  }
  std::string journal() const { return root_ + "/journal"; }
  std::string rollouts(const std::string& stage) const { return root_ + "/rollouts/" + stage; }
  std::string dataset(const std::string& stage) const {
    return root_ + "/datasets/" + stage + ".jsonl";
  }
  std::string exported(const std::string& stage) const { return root_ + "/export/" + stage; }
  std::string metrics() const { return root_ + "/metrics.jsonl"; }
  std::string secret() const { return root_ + "/secret"; }
  std::string coordinator_address() const { return root_ + "/coordinator"; }
  FileSystem& fs() const { return fs_; }

  // Makes the run's one writer: takes the file lock, waiting up to `seconds` for a dying
  // predecessor, and a new incarnation number. Error naming who holds it otherwise.
  void Acquire(int seconds);
  int64_t incarnation() const { return incarnation_; }
  // Makes this process the one that starts the run's processes, until it ends. ConfigError naming
  // the one that does so already.
  void Supervise();
  // Throws when another incarnation has taken over: a ghost must not write.
  void CheckFence() const;

  RunState ReadState() const;                    // empty when there is none yet
  void WriteState(const RunState& state) const;  // state.json and summary.json, fenced
  // The per-run secret, made with mode 0600 at first use, or anew where the file holds no whole
  // one; behind it, from the second line on, the run's own certificate if that is wanted
  // (rollout/own_certificate.h). The writer's alone to call.
  std::string Secret(bool with_certificate = false) const;

  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

 private:
  FileSystem& fs_;
  std::string root_;
  int lock_ = -1, supervisor_ = -1;
  int64_t incarnation_ = 0;
};

}  // namespace hone::rl
