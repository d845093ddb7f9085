// The reference policy of reinforcement learning: a frozen earlier policy, from which β·KL keeps
// the present one. It lives on the learner ranks, as chunks of their own layout; or in their pinned
// host memory, from which it visits the device while samples are read; or in the pool: then a rank
// keeps only the part of it that it serves, and workers read samples with it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rl/stages/environment.h"
#include "rl/stages/rollout_batch.h"
#include "rl/stages/sample_pool.h"

namespace hone::rl {

// All methods are collective but step, Prune and DropAhead.
class ReferencePolicy {
 public:
  ReferencePolicy(Environment& env, const StageConfig& stage);
  ~ReferencePolicy();
  ReferencePolicy(const ReferencePolicy&) = delete;
  ReferencePolicy& operator=(const ReferencePolicy&) = delete;

  // Becomes the learner's present policy, that of step `step`; 0: what the stage starts from.
  void Refresh(int64_t step);
  // As it was after the refresh of that step; `start`: the folder that the stage began from,
  // which is that of step 0.
  void Restore(int64_t step, const std::string& start);
  int64_t step() const { return step_; }
  // Writes it, once a refresh, before a checkpoint that names its step. It moves seldom: so its
  // weights have a checkpoint of their own, named by that step.
  void Save();
  // Removes those that no checkpoint of the stage needs any more. Rank 0, when one was committed.
  static void Prune(FileSystem& fs, const std::string& checkpoints);
  // Removes those beyond the newest checkpoint: their writer was killed before the checkpoint that
  // was to name them, and to Prune they would pass for what a later one names. Rank 0, when the
  // stage begins or goes on.
  static void DropAhead(FileSystem& fs, const std::string& checkpoints);

  // Of each sample's completion tokens; 0 where the pool reads and the model drew nothing.
  std::vector<std::vector<float>> Logprobs(const RolloutBatch& batch, int64_t rollout);

 private:
  std::string Path(int64_t step) const;
  bool in_pool() const { return stage_.grpo.reference == GrpoConfig::Place::kPool; }
  // To the host's memory, or published to the pool.
  void Put(const SlabIndex& weights);
  SlabIndex Weights() const;
  std::vector<std::vector<float>> ReadInPool(const RolloutBatch& batch, int64_t rollout);

  static constexpr char kName[] = "reference";
  Environment& env_;
  const StageConfig& stage_;
  class Chunks;
  std::unique_ptr<Chunks> chunks_;  // null unless it is on the learner ranks
  SlabIndex host_;                  // empty unless it is there
  WeightVersion pinned_;
  int64_t step_ = 0, saved_step_ = 0;
};

}  // namespace hone::rl
