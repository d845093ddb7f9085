// `hone status`: where a run stands.
#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <iostream>
#include <thread>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/signals.h"
#include "launcher/stage_table.h"
#include "rl/run_directory.h"
#include "runtime/error.h"
#include "runtime/json.h"

namespace hone::launcher {
namespace {

// The last whole line of metrics.jsonl, "" without one.
std::string LastMetrics(const std::string& path) {
  std::ifstream file(path);
  std::string line, last;
  while (std::getline(file, line)) {
    if (nlohmann::json::accept(line)) last = line;
  }
  return last;
}

}  // namespace

int StatusCommand(const Arguments& args) {
  std::string run_dir;
  bool json = false, watch = false;
  CLI::App app("The stage pipeline of a run", "hone status");
  app.add_option("run_dir", run_dir, "the run directory")->required();
  app.add_flag("--json", json, "summary.json and the last metrics as one object");
  app.add_flag("--watch", watch, "again every two seconds, until interrupted");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  auto& fs = runtime::LocalFileSystem();
  Check<ConfigError>(fs.Exists(run_dir + "/state.json"),
                     "[status] {} is no run directory: it has no state.json", run_dir);
  const std::atomic<bool>& stop = StopFlag();
  do {
    rl::RunDirectory directory(fs, run_dir);
    std::string last = LastMetrics(directory.metrics());
    if (json) {
      auto summary =
          runtime::ParseJson(fs.ReadAll(run_dir + "/summary.json"), run_dir + "/summary.json");
      summary["last"] = last.empty() ? nlohmann::json() : nlohmann::json::parse(last);
      std::cout << summary.dump(1) << "\n";
    } else {
      std::cout << (watch ? "\x1b[2J\x1b[H" : "") << StageTable(directory.ReadState());
      if (!last.empty()) std::cout << "last step: " << last << "\n";
    }
    std::cout.flush();
    if (watch) std::this_thread::sleep_for(std::chrono::seconds(2));
  } while (watch && !stop);
  return 0;
}

}  // namespace hone::launcher
