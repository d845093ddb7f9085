// Reward models: trained from preferences, then frozen to score the samples of general prompts.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rl/rollout/coordinator.h"
#include "rl/rollout/sample.h"
#include "rl/stages/environment.h"
#include "rl/stages/preference_batch.h"

namespace hone::rl {

// The run's model with a value head.
model::ModelConfig WithValueHead(model::ModelConfig model);

// What the pool journals a reading as.
struct ReadingName {
  std::string stage;
  int64_t rollout = 0;
};

// One finished reward model: in the learner's layout, or in the pool.
class FrozenRewardModel {
 public:
  // Collective. Loads what stage `name` left behind.
  FrozenRewardModel(Environment& env, const std::string& name,
                    GrpoConfig::Place place = GrpoConfig::Place::kLearner);
  ~FrozenRewardModel();
  FrozenRewardModel(const FrozenRewardModel&) = delete;
  FrozenRewardModel& operator=(const FrozenRewardModel&) = delete;

  // A score a completion, the same on every rank: the value (pairwise) or its sigmoid, the
  // probability of being good (pointwise). Collective.
  std::vector<double> Score(const std::vector<std::string>& prompts,
                            const std::vector<std::string>& completions,
                            const ReadingName& name = {});

 private:
  std::vector<double> ValuesHere(const std::vector<PreferenceItem>& items);
  std::vector<double> ValuesFromPool(const std::vector<PreferenceItem>& items,
                                     const ReadingName& name);

  Environment& env_;
  const StageConfig& stage_;
  std::vector<std::unique_ptr<model::TransformerStage>> chunks_;
  std::unique_ptr<parallel::TrainEngine> engine_;  // null in the pool
  WeightVersion pinned_;
};

// Every reward model of a GRPO stage.
class RewardModels {
 public:
  RewardModels(Environment& env, const GrpoConfig& config);
  // Adds each model's score to the rewards of the samples of general problems. `problems`: of each
  // sample, which are of one rollout. Collective.
  void AddRewards(const std::vector<data::Problem>& problems, std::vector<Sample>* samples);

 private:
  std::map<std::string, FrozenRewardModel> models_;  // by the reward's name
};

}  // namespace hone::rl
