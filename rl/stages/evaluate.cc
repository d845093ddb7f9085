// Scores of a policy on held-out problems: greedy, and sampled at the suite's temperature.
#include <cmath>

#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"

namespace hone::rl {
namespace {

RolloutPlan MakePlan(const Environment& env, const EvaluationSuite& suite, const std::string& label,
                     bool greedy, const WeightVersion& version) {
  RolloutPlan plan;
  plan.purpose = LeasePurpose::kEvaluate;
  plan.stage = fmt::format("{}/eval/{}/{}", label, suite.name, greedy ? "greedy" : "sampled");
  plan.seed = env.config.seed;
  plan.weight_version = version.version;
  plan.weight_digest = version.digest;
  plan.sampling = suite.sampling.sampling;
  if (greedy) plan.sampling = {.temperature = 0, .top_p = 1, .top_k = 0};
  plan.max_new_tokens = suite.sampling.max_new_tokens;
  plan.stop_strings = suite.sampling.stop_strings;
  plan.stop_ids = {env.tokenizer->eos_id()};
  plan.environment = suite.sampling.environment;
  int64_t count =
      suite.problems->size() < 0 ? suite.count : std::min(suite.count, suite.problems->size());
  for (int64_t i = 0; i < count; ++i) {
    RolloutPrompt prompt;
    prompt.index = i;
    prompt.problem = suite.problems->At(i);
    prompt.tokens = env.tokenizer->Encode(prompt.problem.prompt);
    plan.prompts.push_back(std::move(prompt));
  }
  return plan;
}

// Means over samples, prefixed; accuracy with the standard error of a proportion.
void AddScores(const std::vector<Sample>& samples, const std::string& prefix,
               EvaluationScores* scores) {
  double n = std::max<double>(1, static_cast<double>(samples.size()));
  double thinking = 0, tokens = 0, correct = 0;
  std::map<std::string, double> parts;
  for (const Sample& s : samples) {
    correct += s.outcome == Outcome::kCorrect;
    tokens += static_cast<double>(s.completion_tokens());
    for (const auto& [name, value] : s.rewards) parts[name] += value;
  }
  thinking = parts["thinking_tokens"];
  parts.erase("thinking_tokens");
  double accuracy = correct / n;
  (*scores)[prefix + "accuracy"] = accuracy;
  (*scores)[prefix + "accuracy_se"] = std::sqrt(accuracy * (1 - accuracy) / n);
  (*scores)[prefix + "completion_tokens"] = tokens / n;
  (*scores)[prefix + "thinking_tokens"] = thinking / n;
  for (const auto& [name, value] : parts) {
    if (name != "accuracy") (*scores)[prefix + name] = value / n;
  }
  (*scores)["problems"] = n;
}

}  // namespace

EvaluationScores RunSuite(Environment& env, const EvaluationSuite& suite,
                          const std::string& label) {
  Check<ConfigError>(
      env.pool != nullptr,
      "[evaluate] suite '{}' samples, but there are no workers: set rollout.workers, or "
      "start some with `hone worker`",
      suite.name);
  WeightVersion version = env.pool->Publish();
  EvaluationScores scores;
  for (bool greedy : {true, false}) {
    if (greedy ? !suite.greedy : !suite.sampled) continue;
    RolloutPlan plan = MakePlan(env, suite, label, greedy, version);
    env.pool->Begin(plan);
    AddScores(env.pool->Finish(plan.stage, plan.rollout), greedy ? "greedy_" : "sampled_", &scores);
  }
  // The unprefixed accuracy is the greedy one where there is one.
  std::string main = suite.greedy ? "greedy_" : "sampled_";
  for (const char* name : {"accuracy", "format", "language", "thinking_tokens"}) {
    if (auto it = scores.find(main + name); it != scores.end()) scores[name] = it->second;
  }
  return scores;
}

}  // namespace hone::rl
