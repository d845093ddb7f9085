// `hone worker`: one rollout worker.
#include "launcher/worker_command.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <iostream>
#include <string_view>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/signals.h"
#include "rl/rollout/worker.h"
#include "runtime/error.h"

namespace hone::launcher {
namespace {

// "cpu", "cuda:1", or "cuda": processes of a machine take its GPUs in turn.
Device ReadDevice(const std::string& name) {
  if (name == "cpu") return Device::Cpu();
  if (name == "cuda") {
    return Device::Cuda(LocalRankFromEnvironment() % std::max(1, runtime::CudaDeviceCount()));
  }
  constexpr std::string_view kPrefix = "cuda:";
  int index = -1;
  bool read = false;
  if (name.starts_with(kPrefix)) {
    const char* end = name.data() + name.size();
    auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, index);
    read = error == std::errc() && stop == end;
  }
  Check<ConfigError>(read && index >= 0, "--device {}: is cpu, cuda or cuda:N", name);
  return Device::Cuda(index);
}

}  // namespace

std::vector<std::string> WorkerOptionsOf(const rl::RolloutConfig& rollout) {
  std::vector<std::string> words = {
      "--threads",          std::to_string(rollout.threads),
      "--device",           rollout.device == Device::Type::kCpu ? "cpu" : "cuda",
      "--verifier-helpers", std::to_string(rollout.verifier_helpers)};
  if (!rollout.tls_certificate.empty()) {
    words.insert(words.end(), {"--tls-certificate", rollout.tls_certificate, "--tls-key",
                               rollout.tls_key, "--tls-ca", rollout.tls_ca});
  }
  return words;
}

int WorkerCommand(const Arguments& args) {
  rl::WorkerOptions options;
  std::string run_dir, device = "cpu";
  CLI::App app("One rollout worker", "hone worker");
  app.add_option("--coordinator", options.coordinator, "HOST:PORT of the coordinator");
  app.add_option("--run-dir", run_dir, "read coordinator and secret from this run directory");
  app.add_option("--secret-file", options.secret_file, "the run's secret");
  app.add_option("--tls-certificate", options.tls_certificate,
                 "for mutual TLS, if the run's config names these files");
  app.add_option("--tls-key", options.tls_key, "for mutual TLS");
  app.add_option("--tls-ca", options.tls_ca, "for mutual TLS");
  app.add_option("--name", options.name, "for logs; host:pid unless told");
  app.add_option("--threads", options.threads, "threads of the model")->capture_default_str();
  app.add_option("--device", device, "cpu, cuda (its turn) or cuda:N")->capture_default_str();
  app.add_option("--verifier-helpers", options.verifier_helpers, "processes that check answers")
      ->capture_default_str();
  app.add_option("--patience", options.patience_seconds,
                 "seconds without a coordinator before giving up")
      ->capture_default_str();
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  if (!run_dir.empty()) {
    options.coordinator_file = run_dir + "/coordinator";
    if (options.secret_file.empty()) options.secret_file = run_dir + "/secret";
  }
  if (options.coordinator.empty() && options.coordinator_file.empty()) {
    std::cerr << "hone worker: name --coordinator HOST:PORT or --run-dir D\n";
    return 2;
  }
  try {
    options.device = ReadDevice(device);
    return rl::RunWorker(options, StopFlag());
  } catch (const Error& e) {
    std::cerr << "hone: " << e.what() << "\n";
    return e.exit_code();
  }
}

}  // namespace hone::launcher
