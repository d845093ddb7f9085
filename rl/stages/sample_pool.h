// The rollout pool as the learner ranks see it: collective calls, the same samples on every rank.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rl/learner.h"
#include "rl/rollout/coordinator.h"
#include "rl/rollout/weight_publisher.h"
#include "rl/run_directory.h"

namespace hone::rl {

class SamplePool {
 public:
  // Rank 0 serves the coordinator and writes its address into the run directory; every rank serves
  // its own weights. `stop` ends waits.
  SamplePool(Learner& learner, RunDirectory& directory, const std::string& secret,
             const std::atomic<bool>& stop);
  ~SamplePool();

  // Makes the learner's present weights available to workers.
  WeightVersion Publish();
  void Begin(RolloutPlan plan);
  // What a signal does to a wait: ends it, or does so once no sample has come for a few seconds.
  enum class Stop { kAtOnce, kWhenStuck };
  // Samples in (prompt, sample) order. Throws StoppedEarly on every rank when a signal ends the
  // wait.
  std::vector<Sample> Finish(const std::string& stage, int64_t rollout, Stop when = Stop::kAtOnce);

 private:
  bool GoOn(const Coordinator::Progress& progress, bool stopping, Stop when);

  Learner& learner_;
  RunDirectory& directory_;
  const std::atomic<bool>& stop_;
  std::unique_ptr<Coordinator> coordinator_;  // rank 0
  std::unique_ptr<WeightPublisher> publisher_;
  int64_t versions_ = 0;
  int64_t arrived_ = 0;  // samples, when last looked at
  std::chrono::steady_clock::time_point last_arrival_;
};

}  // namespace hone::rl
