// What a run config says by name: that there is such a stage, suite or metric, where it is wanted.
#include <algorithm>
#include <set>

#include "rl/reward/verifier.h"
#include "rl/run_config.h"

namespace hone::rl {
namespace {

std::string NearestHint(const std::string& word, const std::vector<std::string>& words) {
  const std::string nearest = runtime::NearestWord(word, words);
  return nearest.empty() ? "" : "; did you mean '" + nearest + "'?";
}

bool IsPath(const std::string& name) { return name.find('/') != std::string::npos; }

std::vector<std::string> NamesOf(const std::vector<StageConfig>& stages) {
  std::vector<std::string> names;
  for (const StageConfig& s : stages) names.push_back(s.name);
  return names;
}

// What a suite measures; some of it only where its problems have it.
std::vector<std::string> MetricsOf(const EvaluationSuite& suite) {
  if (suite.is_text()) return {"loss", "tokens"};
  std::vector<std::string> metrics = {"problems", "accuracy", "format", "language",
                                      "thinking_tokens"};
  std::vector<std::string> parts = {"accuracy_se", "completion_tokens", "thinking_tokens",
                                    "tool_calls"};
  parts.insert(parts.end(), RewardNames().begin(), RewardNames().end());
  for (const std::string& part : parts) {
    if (suite.greedy) metrics.push_back("greedy_" + part);
    if (suite.sampled) metrics.push_back("sampled_" + part);
  }
  if (suite.sampled && suite.samples_per_problem > 1) metrics.push_back("sampled_pass_at_k");
  return metrics;
}

void CheckSuite(const RunConfig& c, const EvaluationSuite& e) {
  const std::vector<std::string> names = NamesOf(c.stages);
  const StageConfig* wrote = c.FindStage(e.samples);
  Check<ConfigError>(
      e.samples.empty() || (wrote && wrote->kind == StageKind::kRejectionSampling),
      "{}: evaluate: suite '{}': samples: no stage of kind rejection_sampling is named '{}'",
      e.where, e.name, e.samples);
  for (const std::string& name : e.after_stages) {
    const StageConfig* stage = c.FindStage(name);
    Check<ConfigError>(stage != nullptr,
                       "{}: evaluate: suite '{}': after_stages: '{}' is no stage{}", e.where,
                       e.name, name, NearestHint(name, names));
    Check<ConfigError>(
        Measured(stage->kind),
        "{}: evaluate: suite '{}': after_stages: nothing is measured after '{}': its "
        "kind is {}",
        e.where, e.name, name, StageKindNames()[static_cast<int>(stage->kind)]);
    Check<ConfigError>(
        c.HasText(e, *stage),
        "{}: evaluate: suite '{}': after_stages: '{}' comes before stage '{}', which "
        "writes the samples",
        e.where, e.name, name, e.samples);
  }
}

void CheckUntil(const RunConfig& c, const StageConfig& s) {
  std::vector<std::string> names;
  for (const EvaluationSuite& e : c.suites) names.push_back(e.name);
  const auto suite = std::find(names.begin(), names.end(), s.until->suite);
  Check<ConfigError>(suite != names.end(),
                     "{}: stage '{}': until.suite: no evaluation suite is named '{}'{}", s.where,
                     s.name, s.until->suite, NearestHint(s.until->suite, names));
  const EvaluationSuite& e = c.suites[static_cast<size_t>(suite - names.begin())];
  Check<ConfigError>(c.HasText(e, s),
                     "{}: stage '{}': until.suite: '{}' is of samples that stage '{}' writes later",
                     s.where, s.name, e.name, e.samples);
  const std::vector<std::string> metrics = MetricsOf(e);
  const std::string& metric = s.until->metric;
  Check<ConfigError>(std::find(metrics.begin(), metrics.end(), metric) != metrics.end(),
                     "{}: stage '{}': until.metric: suite '{}' has no metric '{}'{}", s.where,
                     s.name, e.name, metric, NearestHint(metric, metrics));
}

// The stages that stand before the one that is looked at.
class Earlier {
 public:
  explicit Earlier(const RunConfig& config) : c_(config), names_(NamesOf(config.stages)) {}

  void Add(const std::string& name) { earlier_.insert(name); }
  bool Has(const std::string& name) const { return earlier_.count(name) > 0; }
  // One that is named by `key` of stage `s`.
  const StageConfig& Need(const StageConfig& s, const std::string& key,
                          const std::string& name) const {
    if (Has(name)) return *c_.FindStage(name);
    throw ConfigError(fmt::format(
        "{}: stage '{}': {}: '{}' {}", s.where, s.name, key, name,
        c_.FindStage(name)
            ? "comes later or is the stage itself: stages run in order, so this would be a cycle"
            : "is no stage" + NearestHint(name, names_)));
  }

 private:
  const RunConfig& c_;
  std::vector<std::string> names_;
  std::set<std::string> earlier_;
};

// Exporting writes a checkpoint's weights; `from` of stages that do not train is followed.
void CheckExport(const RunConfig& c, const StageConfig& s) {
  std::string from = s.from;
  for (const StageConfig* stage = c.FindStage(from); stage && !Trains(stage->kind);
       stage = c.FindStage(from)) {
    from = stage->from;
  }
  Check<ConfigError>(from != "init",
                     "{}: stage '{}': from: 'init' is no checkpoint to export: name a stage that "
                     "trains, or a checkpoint's folder",
                     s.where, s.name);
}

void CheckStage(const RunConfig& c, const StageConfig& s, const Earlier& earlier) {
  Check<ConfigError>(!earlier.Has(s.name), "{}: two stages are named '{}'", s.where, s.name);
  if (const StageConfig* shared = c.FindStage(s.name + "-reference")) {
    Check<ConfigError>(s.kind != StageKind::kGrpo,
                       "{}: stage '{}': checkpoints/{} is where stage '{}' keeps its reference; "
                       "choose another name",
                       shared->where, shared->name, shared->name, s.name);
  }
  if (s.from != "init" && !IsPath(s.from)) earlier.Need(s, "from", s.from);
  for (const auto& [reward, model] : s.grpo.reward_models) {
    const StageConfig& from = earlier.Need(s, "reward_models." + reward, model);
    Check<ConfigError>(from.kind == StageKind::kRewardModel,
                       "{}: stage '{}': reward_models.{}: stage '{}' trains no reward model",
                       s.where, s.name, reward, model);
  }
  const StageConfig* from = c.FindStage(s.from);
  Check<ConfigError>(
      s.kind == StageKind::kRewardModel || from == nullptr || from->kind != StageKind::kRewardModel,
      "{}: stage '{}': from: '{}' is a reward model, which no policy starts from", s.where, s.name,
      s.from);
  for (const std::string& name : s.samples) {
    if (IsPath(name)) continue;
    Check<ConfigError>(
        earlier.Need(s, "samples", name).kind == StageKind::kRejectionSampling,
        "{}: stage '{}': samples: stage '{}' writes none: its kind is not rejection_sampling",
        s.where, s.name, name);
  }
  if (s.until) CheckUntil(c, s);
  if (s.kind == StageKind::kExport) CheckExport(c, s);
}

}  // namespace

void CheckReferences(const RunConfig& c) {
  Earlier earlier(c);
  for (const StageConfig& s : c.stages) {
    CheckStage(c, s, earlier);
    earlier.Add(s.name);
  }
  for (const EvaluationSuite& e : c.suites) CheckSuite(c, e);
}

const StageConfig& FindLastStage(const RunConfig& c, const std::string& until) {
  const StageConfig* stage = until.empty() ? &c.stages.back() : c.FindStage(until);
  Check<ConfigError>(stage != nullptr, "[run] --until {}: there is no such stage{}", until,
                     NearestHint(until, NamesOf(c.stages)));
  return *stage;
}

}  // namespace hone::rl
