// From rewards to advantages: group-relative estimators.
#pragma once

#include <string>
#include <vector>

namespace hone::rl {

enum class AdvantageKind {
  kGrpo,  // (r − mean) / std in the group, population std; 0 where std = 0   [2402.03300 §4.1.2]
  kDrGrpo,  // r − mean                                                        [2503.20783 eq. 3]
  kRloo,    // r − mean of the others                                          [2402.14740 eq. 8]
  kReinforcePlusPlus,  // r − group mean, then whitened over the whole batch [2501.03262 §3]
};
const std::vector<std::string>& AdvantageNames();  // grpo dr_grpo rloo reinforce_pp

// rewards[g][i] → advantages[g][i]. Groups may differ in size; a group of one gets 0 (RLOO too).
std::vector<std::vector<double>> Advantages(AdvantageKind kind,
                                            const std::vector<std::vector<double>>& rewards);

}  // namespace hone::rl
