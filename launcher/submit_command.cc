// `hone submit`: a run as a SLURM job.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "launcher/child_process.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/slurm_job.h"
#include "launcher/worker_command.h"
#include "rl/rollout/own_certificate.h"
#include "rl/run_config.h"
#include "runtime/file_system.h"

namespace hone::launcher {
namespace {

namespace fs = std::filesystem;

struct SubmitOptions {
  std::string config, run_dir;
  std::vector<std::string> overrides;
  std::string launcher = "mpirun";
  bool dry_run = false;
  SlurmJob job;
};

// The job of `config`, whose paths are read from where this was called.
SlurmJob JobOf(const SubmitOptions& options, const rl::RunConfig& config) {
  SlurmJob job = options.job;
  job.name = config.name;
  job.program = ThisProgram();
  job.work_dir = fs::current_path();
  job.run_dir =
      fs::absolute(options.run_dir.empty() ? config.dir + "/" + config.name : options.run_dir)
          .lexically_normal();
  job.config = job.run_dir + "/submitted.yaml";
  job.as_root = geteuid() == 0;
  job.ranks = config.mesh.ranks();
  job.threads = config.train.threads;
  job.workers = config.rollout.workers;
  job.worker_threads = config.rollout.threads;
  job.worker_options = WorkerOptionsOf(config.rollout);
  const auto& names = SlurmLauncherNames();
  job.launcher = static_cast<SlurmLauncher>(
      std::find(names.begin(), names.end(), options.launcher) - names.begin());
  return job;
}

void CheckJob(const SlurmJob& job) {
  for (const std::string& text : {job.name, job.run_dir}) {
    Check<ConfigError>(std::none_of(text.begin(), text.end(), ::isspace),
                       "[submit] '{}' has a space in it: run.name and the run directory stand on "
                       "#SBATCH lines, which end there",
                       text);
  }
  Check<ConfigError>(
      job.ranks >= job.nodes,
      "[submit] {} nodes for {} learner ranks (mesh.pp · mesh.dp): ask for fewer nodes", job.nodes,
      job.ranks);
  Check<ConfigError>(job.ranks % job.nodes == 0,
                     "[submit] {} learner ranks do not spread evenly over {} nodes", job.ranks,
                     job.nodes);
}

// Every learner rank serves its part of the weights to workers on every node, from its own address.
rl::RunConfig ConfigFor(SubmitOptions& options) {
  rl::RunConfig config = rl::LoadRunConfig(options.config, options.overrides);
  if (options.job.nodes == 1 || config.rollout.workers == 0) return config;
  if (rl::IsLoopback(config.rollout.listen)) {
    options.overrides.push_back("rollout.listen=0.0.0.0:0");
    config = rl::LoadRunConfig(options.config, options.overrides);
  }
  Check<ConfigError>(rl::IsWildcard(config.rollout.listen),
                     "[submit] rollout.listen: {} is an address of one machine, and learner ranks "
                     "on {} nodes serve weights, each from its own: set rollout.listen: "
                     "0.0.0.0:PORT",
                     config.rollout.listen, options.job.nodes);
  return config;
}

std::string Submit(const std::string& script) {
  const std::string command = "sbatch --parsable " + ShellQuoted(script) + " 2>&1";
  std::FILE* pipe = popen(command.c_str(), "r");
  Check(pipe != nullptr, "[submit] no shell could be started");
  std::string output;
  for (int c = 0; (c = std::fgetc(pipe)) != EOF;) output += static_cast<char>(c);
  const int status = pclose(pipe);
  while (output.ends_with('\n')) output.pop_back();
  Check(status == 0, "[submit] sbatch refused {}: {}", script, output);
  return output.substr(0, output.find(';'));  // "job;cluster"
}

}  // namespace

int SubmitCommand(const Arguments& args) {
  SubmitOptions options;
  SlurmJob& job = options.job;
  CLI::App app("A run as a SLURM job that goes on after its time limit", "hone submit");
  app.add_option("config", options.config, "the run's config (YAML)")->required();
  app.add_option("--nodes", job.nodes, "nodes of the job")->required()->check(CLI::PositiveNumber);
  app.add_option("--run-dir", options.run_dir, "where the run lives (default: run.dir/run.name)");
  app.add_option("--set", options.overrides, "key=value, e.g. mesh.dp=8");
  app.add_option("--until", job.until, "the last stage to run");
  app.add_option("--time", job.time, "the job's time limit")->capture_default_str();
  app.add_option("--notice", job.notice_seconds, "seconds before it in which to write a checkpoint")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--launcher", options.launcher, "how ranks are started: mpirun, pmix or tcp")
      ->capture_default_str()
      ->check(CLI::IsMember(SlurmLauncherNames()));
  app.add_option("--sbatch", job.sbatch,
                 "one more option for sbatch, e.g. --sbatch=--partition=gpu");
  app.add_flag("--dry-run", options.dry_run, "print the job's script and submit nothing");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  const rl::RunConfig config = ConfigFor(options);
  rl::CheckRun(config);
  rl::FindLastStage(config, job.until);
  job = JobOf(options, config);
  CheckJob(job);
  const std::string script = SlurmScript(job);
  if (options.dry_run) {
    std::cout << script;
    return 0;
  }
  FileSystem& files = runtime::LocalFileSystem();
  files.MakeDirs(job.run_dir + "/logs");
  files.WriteAtomically(job.config, config.resolved_yaml);
  files.WriteAtomically(job.run_dir + "/submit.sbatch", script);
  const std::string id = Submit(job.run_dir + "/submit.sbatch");
  std::cout << fmt::format("job {}; `hone status {}` says where it stands, its output is in {}\n",
                           id, job.run_dir, job.run_dir + "/logs/slurm-" + id + ".log");
  return 0;
}

}  // namespace hone::launcher
