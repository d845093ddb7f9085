// `hone check`: finds what is wrong with a config before anything starts, and what this machine
// has.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "data/tokenizer.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/machine_report.h"
#include "rl/plan/plan.h"

namespace hone::launcher {
namespace {

int64_t MachineBytes() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE); }

// A device that is surely too small is an error. The machine that this runs on may not be the one
// that trains, so what does not fit into it is a warning.
void CheckMemory(const rl::RunConfig& config, double gpu_memory) {
  if (config.train.device == Device::Type::kCuda && gpu_memory == 0) {
    std::cerr << "hone: memory is not looked at: the ranks are on GPUs; say --gpu-memory GB\n";
  }
  const auto rank_bytes = static_cast<int64_t>(gpu_memory * 1e9);
  const rl::FitReport fit = CheckFit(config, rank_bytes, MachineBytes());
  Check<ConfigError>(rank_bytes == 0 || fit.verdict != rl::FitReport::Verdict::kDoesNotFit,
                     "[memory] {}", fit.text);
  if (fit.verdict != rl::FitReport::Verdict::kFits) {
    std::cerr << "hone: warning: [memory] " << fit.text << "\n";
  }
}

}  // namespace

int CheckCommand(const Arguments& args) {
  std::string path;
  std::vector<std::string> overrides;
  CLI::App app("Find what is wrong with a config before anything starts", "hone check");
  auto* config_file =
      app.add_option("config", path, "the run's config (YAML); without: what this machine has");
  app.add_option("--set", overrides, "key=value, e.g. stages.base.steps=20")->needs(config_file);
  double gpu_memory = 0;
  app.add_option("--gpu-memory", gpu_memory, "GB (10^9 bytes) of each learner rank's device")
      ->needs(config_file)
      ->check(IsPositive);
  bool json = false;
  app.add_flag("--json", json, "what this machine has, as JSON");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  if (json || path.empty()) {
    const MachineReport machine = InspectMachine();
    std::cout << (json ? machine.ToJson() : machine.ToText());
    if (path.empty()) return 0;
  }
  rl::RunConfig config = rl::LoadRunConfig(path, overrides);
  rl::CheckRun(config);
  CheckMemory(config, gpu_memory);
  (json ? std::cerr : std::cout) << fmt::format(
      "{}: {} stages, {} parameters ({} active a token), {} learner rank{} ({}), {} worker{}\n",
      config.name, config.stages.size(), config.model.ParameterCount(true),
      config.model.ActiveParameterCount(true), config.mesh.ranks(),
      config.mesh.ranks() == 1 ? "" : "s", config.mesh.ToString(), config.rollout.workers,
      config.rollout.workers == 1 ? "" : "s");
  return 0;
}

}  // namespace hone::launcher
