// `hone check`: finds what is wrong with a config before anything starts.
#include <CLI/CLI.hpp>
#include <iostream>

#include "data/tokenizer.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "rl/run_config.h"

namespace hone::launcher {

int CheckCommand(const Arguments& args) {
  std::string path;
  std::vector<std::string> overrides;
  CLI::App app("Find what is wrong with a config before anything starts", "hone check");
  app.add_option("config", path, "the run's config (YAML)")->required();
  app.add_option("--set", overrides, "key=value, e.g. stages.base.steps=20");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  rl::RunConfig config = rl::LoadRunConfig(path, overrides);
  rl::CheckRun(config);
  std::cout << fmt::format(
      "{}: {} stages, {} parameters ({} active a token), {} learner rank{} ({}), {} worker{}\n",
      config.name, config.stages.size(), config.model.ParameterCount(true),
      config.model.ActiveParameterCount(true), config.mesh.ranks(),
      config.mesh.ranks() == 1 ? "" : "s", config.mesh.ToString(), config.rollout.workers,
      config.rollout.workers == 1 ? "" : "s");
  return 0;
}

}  // namespace hone::launcher
