// The stage pipeline as text: what each stage did and what it was worth.
#pragma once

#include <string>

#include "rl/run_directory.h"

namespace hone::launcher {

std::string StageTable(const rl::RunState& state);

}  // namespace hone::launcher
