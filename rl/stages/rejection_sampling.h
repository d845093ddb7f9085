// Which samples of rejection sampling are kept.
#pragma once

#include <string>

#include "rl/rollout/sample.h"
#include "rl/run_config.h"

namespace hone::rl {

// Why a sample by itself is dropped; "" keeps it.
std::string ReasonToDrop(const Sample& sample, const RejectionConfig& config);

}  // namespace hone::rl
