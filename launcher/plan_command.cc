// `hone plan`: what a config needs and how fast it would be, from the config alone.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/plan_report.h"

namespace hone::launcher {
namespace {

struct PlanOptions {
  std::string config;
  std::vector<std::string> overrides;
  int gpus = 0;
  double gpu_memory = 0;  // GB
  size_t suggestions = 8;
  bool json = false;
  rl::MachineModel machine;
};

// The machine's flags, in the units people use for them.
struct MachineFlags {
  double tflops = 0, efficiency = 0, memory = 0, node = 0, network = 0, host = 0;
  int node_ranks = 0;

  void Add(CLI::App& app) {
    app.add_option("--tflops", tflops, "of products, a rank")->check(IsPositive);
    app.add_option("--efficiency", efficiency, "share of them that layers reach")
        ->check(CLI::Range(0.0, 1.0));
    app.add_option("--memory-bandwidth", memory, "GB/s")->check(IsPositive);
    app.add_option("--node-bandwidth", node, "GB/s from a rank to others of its node")
        ->check(IsPositive);
    app.add_option("--network-bandwidth", network, "GB/s from a rank to other nodes")
        ->check(IsPositive);
    app.add_option("--host-bandwidth", host, "GB/s from a device to its host, and back")
        ->check(IsPositive);
    app.add_option("--gpus-per-node", node_ranks)->check(CLI::PositiveNumber);
  }
  void Apply(rl::MachineModel* m) const {
    if (tflops > 0) m->flops = tflops * 1e12;
    if (efficiency > 0) m->efficiency = efficiency;
    if (memory > 0) m->memory_bandwidth = memory * 1e9;
    if (node > 0) m->node_bandwidth = node * 1e9;
    if (network > 0) m->network_bandwidth = network * 1e9;
    if (host > 0) m->host_bandwidth = host * 1e9;
    if (node_ranks > 0) m->node_ranks = node_ranks;
  }
};

bool OnCpus(const PlanOptions& options, const rl::RunConfig& config) {
  return options.gpus == 0 && config.train.device == Device::Type::kCpu;
}

// The config's layout, with as many replicas as there are ranks for; else the best there is.
void ChooseLayout(const PlanOptions& options, PlanReport* report) {
  rl::Layout layout = LayoutOf(report->config, OnCpus(options, report->config));
  const int ranks = options.gpus > 0 ? options.gpus : layout.mesh.ranks();
  report->suggestions =
      SuggestLayouts(report->config, layout, ranks, report->rank_bytes, report->machine);
  std::string why;
  if (ranks != layout.mesh.ranks()) {
    report->note = fmt::format("The config's layout is for {} ranks: its replicas are changed.",
                               layout.mesh.ranks());
    layout.mesh.dp = ranks / layout.mesh.pp;
    if (ranks % layout.mesh.pp != 0) {
      why = fmt::format("pp = {} does not divide {} ranks", layout.mesh.pp, ranks);
    }
  }
  try {
    Check<ConfigError>(why.empty(), "{}", why);
    report->plan = PlanRun(report->config, layout, report->machine);
  } catch (const ConfigError& e) {
    Check<ConfigError>(!report->suggestions.empty(),
                       "{}; and no other layout of {} ranks fits the model and its batches",
                       e.what(), ranks);
    report->note =
        fmt::format("The config's layout cannot be used: {}. The best one is shown.", e.what());
    report->plan = PlanRun(report->config, report->suggestions[0].layout, report->machine);
  }
}

}  // namespace

int PlanCommand(const Arguments& args) {
  PlanOptions options;
  MachineFlags flags;
  CLI::App app("What a run needs of memory, how fast it would be, and which layouts fit",
               "hone plan");
  app.add_option("config", options.config,
                 "the run's config (YAML), or a Hugging Face folder or its config.json")
      ->required();
  app.add_option("--set", options.overrides, "key=value, e.g. mesh.pp=16");
  app.add_option("--gpus", options.gpus, "ranks, a device each; without: the config's")
      ->check(CLI::PositiveNumber);
  app.add_option("--gpu-memory", options.gpu_memory, "GB (10^9 bytes) of each rank")
      ->check(IsPositive);
  app.add_option("--layouts", options.suggestions, "how many to suggest")->capture_default_str();
  app.add_flag("--json", options.json);
  flags.Add(app);
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  PlanReport report;
  report.config = rl::LoadPlanConfig(options.config, options.overrides);
  if (OnCpus(options, report.config)) {
    report.machine = rl::MachineModel::Cpu(report.config.train.threads);
  }
  flags.Apply(&report.machine);
  report.rank_bytes = static_cast<int64_t>(options.gpu_memory * 1e9);
  ChooseLayout(options, &report);
  if (options.json) {
    std::cout << PlanJson(report).dump(2) << "\n";
  } else {
    std::cout << PlanText(report, options.suggestions);
  }
  return 0;
}

}  // namespace hone::launcher
