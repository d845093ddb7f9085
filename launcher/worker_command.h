// How the workers of a run are started, whoever starts them.
#pragma once

#include <string>
#include <vector>

#include "rl/run_config.h"

namespace hone::launcher {

// The options of `hone worker` that its config decides. A worker on GPUs takes the one that is its
// turn among the processes of its machine.
std::vector<std::string> WorkerOptionsOf(const rl::RolloutConfig& rollout);

}  // namespace hone::launcher
