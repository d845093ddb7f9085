// Scores of a model on this process, as a run's own evaluation gives them.
#pragma once

#include "rl/loaded_model.h"
#include "rl/reward/verifier_pool.h"
#include "rl/run_config.h"
#include "rl/run_directory.h"

namespace hone::rl {

// Answers the suite's problems greedily, sampled (as often as it says), or both, and has `verifiers`
// judge them. What is drawn depends on the seed and the suite's name. ConfigError for a suite of
// text, and for a problem that does not fit the model's context.
EvaluationScores EvaluateModel(LoadedModel& model, const EvaluationSuite& suite, uint64_t seed,
                               int64_t max_batch, VerifierPool& verifiers);

}  // namespace hone::rl
