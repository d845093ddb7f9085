// What `hone plan` prints, for people and for programs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "rl/plan/plan.h"

namespace hone::launcher {

struct PlanReport {
  rl::RunConfig config;
  rl::MachineModel machine;
  int64_t rank_bytes = 0;  // of a rank's device; 0: not said
  std::string note;        // why the layout is not the config's
  rl::RunPlan plan;
  std::vector<rl::Suggestion> suggestions;  // best first
};

std::string PlanText(const PlanReport& report, size_t suggestions);
nlohmann::ordered_json PlanJson(const PlanReport& report);

}  // namespace hone::launcher
