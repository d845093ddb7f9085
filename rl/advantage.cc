#include "rl/advantage.h"

#include <cmath>

namespace hone::rl {
namespace {

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

// Population standard deviation about `mean`.
double Deviation(const std::vector<double>& values, double mean) {
  double sum = 0;
  for (double v : values) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / static_cast<double>(values.size()));
}

bool AllEqual(const std::vector<double>& values) {
  for (double v : values) {
    if (v != values[0]) return false;
  }
  return true;
}

std::vector<double> OfGroup(AdvantageKind kind, const std::vector<double>& rewards) {
  std::vector<double> advantages(rewards.size(), 0.0);
  // Tested exactly: a deviation computed from equal rewards can be a rounding error above zero.
  if (rewards.size() < 2 || AllEqual(rewards)) return advantages;
  double mean = Mean(rewards);
  double n = static_cast<double>(rewards.size());
  double scale = 1;
  if (kind == AdvantageKind::kGrpo) {
    double deviation = Deviation(rewards, mean);
    scale = deviation > 0 ? 1 / deviation : 0;  // squares of small differences may be 0
  }
  if (kind == AdvantageKind::kRloo) scale = n / (n - 1);  // r − (n·mean − r)/(n − 1)
  for (size_t i = 0; i < rewards.size(); ++i) advantages[i] = (rewards[i] - mean) * scale;
  return advantages;
}

void Whiten(std::vector<std::vector<double>>* groups) {
  std::vector<double> all;
  for (auto& group : *groups) all.insert(all.end(), group.begin(), group.end());
  if (all.empty() || AllEqual(all)) return;
  double mean = Mean(all), deviation = Deviation(all, mean);
  if (deviation == 0) return;
  for (auto& group : *groups) {
    for (double& a : group) a = (a - mean) / deviation;
  }
}

}  // namespace

const std::vector<std::string>& AdvantageNames() {
  static const std::vector<std::string> names = {"grpo", "dr_grpo", "rloo", "reinforce_pp"};
  return names;
}

std::vector<std::vector<double>> Advantages(AdvantageKind kind,
                                            const std::vector<std::vector<double>>& rewards) {
  std::vector<std::vector<double>> advantages;
  for (auto& group : rewards) advantages.push_back(OfGroup(kind, group));
  if (kind == AdvantageKind::kReinforcePlusPlus) Whiten(&advantages);
  return advantages;
}

}  // namespace hone::rl
