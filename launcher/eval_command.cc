// `hone eval`: scores of a model.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "rl/evaluate_model.h"

namespace hone::launcher {
namespace {

struct EvalOptions {
  std::string model, config, problems;
  std::vector<std::string> overrides, suites;
  rl::LoadOptions load;
  std::string sampling = "{}";
  int64_t count = 200, max_batch = 64;
  int helpers = 1;
  uint64_t seed = 1;
  bool json = false;
};

// The suites of a config that answer problems, or those of them that are named.
std::vector<rl::EvaluationSuite> SuitesOfConfig(const EvalOptions& options) {
  rl::RunConfig config = rl::LoadRunConfig(options.config, options.overrides);
  std::vector<rl::EvaluationSuite> chosen;
  for (const rl::EvaluationSuite& suite : config.suites) {
    if (options.suites.empty() && !suite.is_text()) chosen.push_back(suite);
  }
  for (const std::string& name : options.suites) {
    auto it = std::find_if(config.suites.begin(), config.suites.end(),
                           [&](const rl::EvaluationSuite& suite) { return suite.name == name; });
    Check<ConfigError>(it != config.suites.end(), "[eval] {} has no evaluation suite '{}'",
                       options.config, name);
    chosen.push_back(*it);
  }
  Check<ConfigError>(!chosen.empty(), "[eval] {} has no evaluation suite", options.config);
  return chosen;
}

// A source in YAML, as in a config: a generated family or a JSONL file.
rl::EvaluationSuite SuiteOfProblems(const EvalOptions& options) {
  rl::EvaluationSuite suite;
  suite.name = "problems";
  ConfigReader problems(Config::FromString(options.problems, "--problems"));
  suite.problems = data::MakeProblemSource(problems, options.seed);
  problems.Finish();
  ConfigReader sampling(Config::FromString(options.sampling, "--sampling"));
  suite.sampling.Read(sampling);
  sampling.Finish();
  suite.count = options.count;
  return suite;
}

void Print(const std::string& suite, const rl::EvaluationScores& scores) {
  std::cout << suite << "\n";
  for (const auto& [name, value] : scores)
    std::cout << fmt::format("  {:32} {:.4f}\n", name, value);
}

int Eval(const EvalOptions& options) {
  std::vector<rl::EvaluationSuite> suites =
      options.config.empty() ? std::vector{SuiteOfProblems(options)} : SuitesOfConfig(options);
  rl::VerifierPool::Options helpers;
  helpers.helpers = options.helpers;
  rl::VerifierPool verifiers(helpers);
  rl::LoadedModel model = rl::LoadModelForInference(options.model, options.load);
  nlohmann::ordered_json all = nlohmann::ordered_json::object();
  for (const rl::EvaluationSuite& suite : suites) {
    rl::EvaluationScores scores =
        rl::EvaluateModel(model, suite, options.seed, options.max_batch, verifiers);
    if (options.json) {
      all[suite.name] = scores;
    } else {
      Print(suite.name, scores);
    }
  }
  if (options.json) std::cout << all.dump() << "\n";
  return 0;
}

}  // namespace

int EvalCommand(const Arguments& args) {
  EvalOptions o;
  CLI::App app("Scores of a model", "hone eval");
  app.add_option("model", o.model, "a Hugging Face folder, a checkpoint folder or a run")
      ->required();
  auto* config = app.add_option("--config", o.config, "take the evaluation suites of this config");
  app.add_option("--set", o.overrides, "key=value, of that config")->needs(config);
  app.add_option("--suite", o.suites, "of the config; all that answer problems unless named")
      ->needs(config);
  auto* problems = app.add_option("--problems", o.problems,
                                  "a problem source, e.g. '{family: chain, split: heldout}' or "
                                  "'{jsonl: test.jsonl, prompt: question}'")
                       ->excludes(config);
  app.add_option("--count", o.count, "problems of the source")
      ->needs(problems)
      ->check(CLI::PositiveNumber);
  app.add_option("--sampling", o.sampling, "of the sampled pass, e.g. '{max_new_tokens: 64}'")
      ->needs(problems);
  app.add_option("--seed", o.seed, "of the problems and the draw")->capture_default_str();
  app.add_option("--tokenizer", o.load.tokenizer, "instead of the model's own");
  app.add_option("--threads", o.load.threads, "of the model")->capture_default_str();
  app.add_option("--max-batch", o.max_batch, "sequences decoding at once")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--verifier-helpers", o.helpers, "processes that check answers")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", o.json, "for machines");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  if (o.config.empty() && o.problems.empty()) {
    std::cerr << "hone eval: name --config CONFIG or --problems SOURCE\n";
    return 2;
  }
  return Eval(o);
}

}  // namespace hone::launcher
