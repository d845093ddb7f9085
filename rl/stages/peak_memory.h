// What the learner ranks of a run have needed of memory: to compare with what was planned.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rl/learner.h"

namespace hone::rl {

// Peaks since the allocators' last ResetPeaks, by category and "total"; one entry a pipeline rank,
// each the highest of its replicas. Collective; every rank gets them.
std::vector<std::map<std::string, int64_t>> GatherPeakBytes(Learner& learner);

}  // namespace hone::rl
