// Log-probabilities of a rollout's tokens under the learner's own models.
#pragma once

#include <vector>

#include "rl/stages/environment.h"
#include "rl/stages/rollout_batch.h"

namespace hone::rl {

// Of each sample's completion tokens, by the model that `engine` holds: its forward pass, at the
// temperature of the stage's loss. Collective; the same on every rank.
std::vector<std::vector<float>> LearnerLogprobs(Environment& env, const StageConfig& stage,
                                                const RolloutBatch& batch,
                                                parallel::TrainEngine& engine);

// Those of the policy as it stands now, before the rollout's first step: where the samples are
// older than it, or are to be corrected for workers that draw other bits. The step's own forward
// gives them where there is but one step. Otherwise the workers' own are the policy's. Collective.
void AddOldLogprobs(Environment& env, const StageConfig& stage, RolloutBatch* batch);

}  // namespace hone::rl
