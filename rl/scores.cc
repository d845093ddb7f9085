#include "rl/scores.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "runtime/error.h"

namespace hone::rl {
namespace {

struct Tries {
  int64_t right = 0, count = 0;
};

// The mean over problems of the share of right samples, and the standard error of that mean.
void AddAccuracy(const std::map<int64_t, Tries>& by_problem, const std::string& prefix,
                 EvaluationScores* scores) {
  const double n = std::max<double>(1, static_cast<double>(by_problem.size()));
  auto share = [](const Tries& t) {
    return static_cast<double>(t.right) / static_cast<double>(t.count);
  };
  double accuracy = 0, variance = 0, passed = 0;
  bool several = false;
  for (const auto& [problem, tries] : by_problem) {
    accuracy += share(tries) / n;
    passed += tries.right > 0 ? 1 / n : 0;
    several = several || tries.count > 1;
  }
  for (const auto& [problem, tries] : by_problem) {
    variance += (share(tries) - accuracy) * (share(tries) - accuracy) / n;
  }
  (*scores)[prefix + "accuracy"] = accuracy;
  (*scores)[prefix + "accuracy_se"] = std::sqrt(variance / n);
  if (several) (*scores)[prefix + "pass_at_k"] = passed;
}

}  // namespace

void AddScores(const std::vector<Sample>& samples, const std::string& prefix,
               EvaluationScores* scores) {
  double n = std::max<double>(1, static_cast<double>(samples.size()));
  double thinking = 0, tokens = 0;
  std::map<std::string, double> parts;
  std::map<int64_t, Tries> by_problem;
  for (const Sample& s : samples) {
    Tries& tries = by_problem[s.key.prompt];
    tries.right += s.outcome == Outcome::kCorrect;
    ++tries.count;
    tokens += static_cast<double>(s.completion_tokens());
    for (const auto& [name, value] : s.rewards) parts[name] += value;
  }
  thinking = parts["thinking_tokens"];
  parts.erase("thinking_tokens");
  AddAccuracy(by_problem, prefix, scores);
  (*scores)[prefix + "completion_tokens"] = tokens / n;
  (*scores)[prefix + "thinking_tokens"] = thinking / n;
  for (const auto& [name, value] : parts) {
    if (name != "accuracy") (*scores)[prefix + name] = value / n;
  }
  (*scores)["problems"] = static_cast<double>(by_problem.size());
}

}  // namespace hone::rl
