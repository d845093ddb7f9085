// What a set of finished samples is worth, as numbers by name.
#pragma once

#include <string>
#include <vector>

#include "rl/rollout/sample.h"
#include "rl/run_directory.h"

namespace hone::rl {

// Means over samples of every reward's part, each name behind `prefix`; accuracy with its standard
// error over the problems; with k samples a problem, the share of problems of which one sample is
// right, as "pass_at_k"; and how many problems there are.
void AddScores(const std::vector<Sample>& samples, const std::string& prefix,
               EvaluationScores* scores);

}  // namespace hone::rl
