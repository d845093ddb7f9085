// Scores of a policy on held-out problems: greedy, and sampled at the suite's temperature.
#include "data/packing.h"
#include "rl/policy_loss.h"
#include "rl/scores.h"
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
  plan.group_size = greedy ? 1 : suite.samples_per_problem;
  plan.sampling = suite.sampling.sampling;
  if (greedy) plan.sampling = {.temperature = 0, .top_p = 1, .top_k = 0};
  plan.max_new_tokens = suite.sampling.max_new_tokens;
  plan.stop_strings = suite.sampling.stop_strings;
  plan.stop_ids = suite.sampling.StopIds(*env.tokenizer);
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

}  // namespace

// Mean loss over the first batch of a suite's texts.
EvaluationScores TextLoss(Environment& env, const EvaluationSuite& suite) {
  std::shared_ptr<data::ExampleSource> source = suite.text;
  if (!source) source = ReadSamples(env.directory.dataset(suite.samples));
  const auto options = TextOptions(env.config, suite, env.learner.mesh().dp_index());
  auto data = data::DataLoader(source, env.tokenizer, options).Next();
  double loss = 0;
  for (auto& outcome : env.learner.engine().Evaluate(data.microbatches, CrossEntropyLoss(), false))
    loss += outcome.loss;
  return {{"loss", env.Sum({loss})[0]}, {"tokens", static_cast<double>(data.tokens)}};
}

EvaluationScores RunSuite(Environment& env, const EvaluationSuite& suite,
                          const std::string& label) {
  if (suite.is_text()) return TextLoss(env, suite);
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
