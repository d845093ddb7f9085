// `hone run`: the whole job on this machine — learner ranks under mpirun, rollout workers beside
// them.
#include <poll.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <iostream>
#include <list>
#include <thread>

#include "launcher/child_process.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/signals.h"
#include "launcher/stage_table.h"
#include "launcher/worker_command.h"
#include "rl/run_config.h"
#include "rl/run_directory.h"

namespace hone::launcher {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLearnerRestarts = 5;
constexpr int kWorkerRestarts = 20;                        // each
constexpr auto kStopPatience = std::chrono::seconds(120);  // for a checkpoint after a signal
constexpr auto kRankPatience = std::chrono::seconds(5);    // for the others when a rank ended
constexpr int kStoppedEarly = 75, kBadConfig = 2;

struct RunOptions {
  std::string config, run_dir, until;
  std::vector<std::string> overrides;
  int learner_restarts = kLearnerRestarts;
};

// Starts, watches and restarts the processes of one run.
class Supervisor {
 public:
  Supervisor(const RunOptions& options, const rl::RunConfig& config)
      : options_(options), config_(config), workers_(config.rollout.workers) {}

  int Run(const std::atomic<bool>& stop) {
    StartLearner();
    bool asked_to_stop = false;
    Clock::time_point stop_deadline;
    for (;;) {
      Wait();
      if (stop && !asked_to_stop) {
        asked_to_stop = true;
        stop_deadline = Clock::now() + kStopPatience;
        std::cerr << "hone: stopping; a checkpoint is written\n";
        // mpirun hands SIGUSR1 to its ranks, where SIGTERM would end them within a second.
        learner_->Signal(SIGUSR1);
      }
      if (asked_to_stop && Clock::now() > stop_deadline) {
        std::cerr << "hone: the learner did not stop in time and is killed\n";
        learner_->SignalGroup(SIGKILL);
      }
      WatchRanks();
      if (learner_->Ended()) {
        int code = learner_->exit_code();
        learner_->Drain();
        if (code == 0 || code == kStoppedEarly || code == kBadConfig || asked_to_stop) {
          StopWorkers();
          return asked_to_stop && code != 0 ? kStoppedEarly : code;
        }
        if (!RestartLearner(code)) {
          StopWorkers();
          return 1;
        }
      }
      WatchWorkers();
    }
  }

 private:
  struct Worker {
    std::unique_ptr<ChildProcess> process;
    int restarts = 0;
    Clock::time_point not_before;
  };

  std::map<std::string, std::string> Environment() const {
    // The kernels bring their own threads; libraries must not add theirs.
    return {{"OMP_NUM_THREADS", "1"}, {"OPENBLAS_NUM_THREADS", "1"}};
  }

  void StartLearner() {
    std::vector<std::string> command;
    if (config_.mesh.ranks() > 1) {
      command = {"mpirun",
                 "--quiet",
                 "--allow-run-as-root",
                 "--oversubscribe",
                 "--bind-to",
                 "none",
                 "-n",
                 std::to_string(config_.mesh.ranks())};
    }
    for (const std::string& word : {ThisProgram(), std::string("train"), options_.config,
                                    std::string("--run-dir"), options_.run_dir}) {
      command.push_back(word);
    }
    for (const std::string& assignment : options_.overrides) {
      command.push_back("--set");
      command.push_back(assignment);
    }
    if (!options_.until.empty()) {
      command.push_back("--until");
      command.push_back(options_.until);
    }
    all_ranks_seen_ = false;
    rank_lost_at_ = Clock::time_point::max();
    learner_ = std::make_unique<ChildProcess>(ChildProcess::Options{
        command, Environment(), options_.run_dir + "/logs/learner.log", true});
  }

  // When a rank dies the others may wait for it in a collective, deaf to mpirun's SIGTERM. They are
  // given a moment to end, and then are ended, so that the run goes on.
  void WatchRanks() {
    size_t ranks = static_cast<size_t>(config_.mesh.ranks());
    if (ranks == 1) return;
    std::vector<pid_t> children = learner_->Children();
    if (children.size() >= ranks) {
      all_ranks_seen_ = true;
      rank_lost_at_ = Clock::time_point::max();
    } else if (all_ranks_seen_) {
      rank_lost_at_ = std::min(rank_lost_at_, Clock::now());
    }
    if (rank_lost_at_ == Clock::time_point::max()) return;
    if (Clock::now() - rank_lost_at_ < kRankPatience) return;
    for (pid_t child : children) kill(child, SIGKILL);
    learner_->SignalGroup(SIGKILL);
  }

  bool RestartLearner(int code) {
    if (restarts_ == options_.learner_restarts) {
      std::cerr << fmt::format("hone: the learner ended with {} after {} restarts; see {}/logs/\n",
                               code, restarts_, options_.run_dir);
      return false;
    }
    ++restarts_;
    std::cerr << fmt::format(
        "hone: the learner ended with {}; restart {} of {} from the last "
        "checkpoint\n",
        code, restarts_, options_.learner_restarts);
    std::this_thread::sleep_for(std::chrono::milliseconds(500 * restarts_));
    StartLearner();
    return true;
  }

  void StartWorker(int index) {
    std::string name = fmt::format("worker-{}", index);
    std::vector<std::string> command = {ThisProgram(),    "worker", "--run-dir",
                                        options_.run_dir, "--name", name};
    for (const std::string& word : WorkerOptionsOf(config_.rollout)) command.push_back(word);
    std::map<std::string, std::string> environment = Environment();
    environment["HONE_LOCAL_RANK"] = std::to_string(index);
    workers_[index].process = std::make_unique<ChildProcess>(ChildProcess::Options{
        command, environment, options_.run_dir + "/logs/" + name + ".log", false});
  }

  void WatchWorkers() {
    for (int i = 0; i < static_cast<int>(workers_.size()); ++i) {
      Worker& w = workers_[i];
      if (w.process && w.process->Ended()) {
        int code = w.process->exit_code();
        w.process.reset();
        w.not_before = Clock::now() + std::chrono::seconds(1);
        if (code != 0) {
          ++w.restarts;
          std::cerr << fmt::format("hone: worker-{} ended with {}{}\n", i, code,
                                   w.restarts <= kWorkerRestarts ? "; it is started again" : "");
        }
      }
      if (!w.process && w.restarts <= kWorkerRestarts && Clock::now() >= w.not_before) {
        StartWorker(i);
      }
    }
  }

  void StopWorkers() {
    for (Worker& w : workers_) {
      if (w.process) w.process->Signal(SIGTERM);
    }
    auto deadline = Clock::now() + std::chrono::seconds(5);
    for (Worker& w : workers_) {
      while (w.process && !w.process->Ended() && Clock::now() < deadline) {
        w.process->Drain();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      w.process.reset();  // kills what is left
    }
  }

  // Sleeps until there is output, at most a fifth of a second.
  void Wait() {
    std::vector<pollfd> fds;
    if (learner_->output() >= 0) fds.push_back({learner_->output(), POLLIN, 0});
    for (Worker& w : workers_) {
      if (w.process && w.process->output() >= 0) fds.push_back({w.process->output(), POLLIN, 0});
    }
    poll(fds.data(), fds.size(), 200);
    learner_->Drain();
    for (Worker& w : workers_) {
      if (w.process) w.process->Drain();
    }
  }

  const RunOptions& options_;
  const rl::RunConfig& config_;
  std::unique_ptr<ChildProcess> learner_;
  std::vector<Worker> workers_;
  bool all_ranks_seen_ = false;
  Clock::time_point rank_lost_at_ = Clock::time_point::max();
  int restarts_ = 0;
};

}  // namespace

int RunCommand(const Arguments& args) {
  RunOptions options;
  CLI::App app("The whole job on this machine; goes on where the run directory stands", "hone run");
  app.add_option("config", options.config, "the run's config (YAML)")->required();
  app.add_option("--run-dir", options.run_dir, "where the run lives (default: run.dir/run.name)");
  app.add_option("--set", options.overrides, "key=value, e.g. stages.base.steps=20");
  app.add_option("--until", options.until, "the last stage to run");
  app.add_option("--learner-restarts", options.learner_restarts,
                 "how often a learner that died is started again")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  const std::atomic<bool>& stop = StopFlag();
  rl::RunConfig config = rl::LoadRunConfig(options.config, options.overrides);
  rl::CheckRun(config);
  rl::FindLastStage(config, options.until);
  if (options.run_dir.empty()) options.run_dir = config.dir + "/" + config.name;
  rl::RunDirectory directory(runtime::LocalFileSystem(), options.run_dir);
  directory.Supervise();
  runtime::LocalFileSystem().MakeDirs(options.run_dir + "/logs");
  int code = Supervisor(options, config).Run(stop);
  if (code == 0) std::cout << StageTable(directory.ReadState());
  return code;
}

}  // namespace hone::launcher
