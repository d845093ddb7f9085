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
  // its own weights. `secret` is RunDirectory::Secret's. `stop` ends waits.
  SamplePool(Learner& learner, RunDirectory& directory, const std::string& secret,
             const std::atomic<bool>& stop);
  ~SamplePool();

  // Makes the learner's present weights available to workers.
  WeightVersion Publish();
  // Makes weights available under a name, beside the present ones, until the name is pinned anew or
  // released: the reference, a reward model. What this rank serves of them.
  WeightVersion Pin(const std::string& name, const SlabIndex& slabs);
  SlabIndex Pinned(const std::string& name) const;
  void Release(const std::string& name);
  // What passed between hosts and devices so far as weights were published, and fetched by workers
  // as far as they have told. Collective.
  int64_t WeightHostBytes() const;
  // ConfigError for a prompt that no worker's cache can hold.
  void Begin(RolloutPlan plan);
  // What a signal does to a wait: ends it, or does so once no worker has got on for a few seconds.
  enum class Stop { kAtOnce, kWhenStuck };
  // Samples in (prompt, sample) order. Throws StoppedEarly on every rank when a signal ends the
  // wait.
  std::vector<Sample> Finish(const std::string& stage, int64_t rollout, Stop when = Stop::kAtOnce);
  // Has workers read samples with pinned weights; see LeaseKind. The same samples, in
  // (prompt, sample) order; a signal ends the wait once no worker has got on for a few seconds.
  struct Reading {
    LeaseKind kind = LeaseKind::kLogprob;
    std::string stage;  // "reasoning_rl/reference": names the journal
    int64_t rollout = 0;
    WeightVersion weights;
    double temperature = 1;
  };
  std::vector<Sample> Read(const Reading& reading, const std::vector<Sample>& samples);

 private:
  int64_t NextVersion();
  // Where learner and workers take turns, the workers' is from Begin to Finish.
  void GiveMemory();
  bool GoOn(const Coordinator::Progress& progress, bool stopping, Stop when);

  Learner& learner_;
  RunDirectory& directory_;
  const std::atomic<bool>& stop_;
  std::unique_ptr<Coordinator> coordinator_;  // rank 0
  std::unique_ptr<WeightPublisher> publisher_;
  int64_t versions_ = 0;
  std::chrono::steady_clock::time_point unstopped_;  // when a wait was last seen without a signal
};

}  // namespace hone::rl
