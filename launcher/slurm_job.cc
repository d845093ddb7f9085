#include "launcher/slurm_job.h"

#include <fmt/core.h>

namespace hone::launcher {
namespace {

constexpr int kLearnerRestarts = 5, kWorkerRestarts = 20;

std::string Header(const SlurmJob& job) {
  // Processors of a node over its learner tasks: the workers of a node take theirs too.
  const int worker_nodes = std::max(1, job.worker_nodes());
  const int workers = (job.workers + worker_nodes - 1) / worker_nodes * job.worker_threads;
  const int tasks = job.ranks_per_node();
  const int processors = tasks * job.threads + workers;
  std::string text = fmt::format(
      R"(#!/bin/bash
#SBATCH --job-name={}
#SBATCH --nodes={}
#SBATCH --ntasks-per-node={}
#SBATCH --cpus-per-task={}
#SBATCH --time={}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={}/logs/slurm-%j.log
#SBATCH --signal=B:USR1@{}
)",
      job.name, job.nodes, tasks, (processors + tasks - 1) / tasks, job.time, job.run_dir,
      job.notice_seconds);
  for (const std::string& option : job.sbatch) text += fmt::format("#SBATCH {}\n", option);
  return text;
}

std::string LearnerCommand(const SlurmJob& job) {
  std::string start;
  switch (job.launcher) {
    case SlurmLauncher::kMpirun:
      start =
          fmt::format("mpirun --quiet{} --oversubscribe --bind-to none --map-by ppr:{}:node -n {}",
                      job.as_root ? " --allow-run-as-root" : "", job.ranks_per_node(), job.ranks);
      break;
    case SlurmLauncher::kPmix:
      start = fmt::format("srun --mpi=pmix --kill-on-bad-exit=0 --ntasks={}", job.ranks);
      break;
    case SlurmLauncher::kTcp:
      start = fmt::format("srun --mpi=none --kill-on-bad-exit=0 --ntasks={}", job.ranks);
      break;
  }
  // The job's own node is the first.
  if (job.launcher == SlurmLauncher::kTcp) {
    start = fmt::format("HONE_MASTER=\"$(hostname):$((12000 + SLURM_JOB_ID % 20000))\" {}", start);
  }
  std::string command = fmt::format("{} {} train {} --run-dir {}", start, ShellQuoted(job.program),
                                    ShellQuoted(job.config), ShellQuoted(job.run_dir));
  if (job.launcher == SlurmLauncher::kTcp) command += " --tcp";
  if (!job.until.empty()) command += fmt::format(" --until {}", ShellQuoted(job.until));
  return command;
}

// A step of its own, whose tasks start their worker again when it dies.
std::string WorkersFunction(const SlurmJob& job) {
  if (job.workers == 0) return "start_workers() { :; }\n";
  std::string worker = fmt::format("{} worker --run-dir {} --name \"worker-$SLURM_PROCID\"",
                                   ShellQuoted(job.program), ShellQuoted(job.run_dir));
  for (const std::string& option : job.worker_options) worker += " " + ShellQuoted(option);
  const std::string again =
      fmt::format("for try in $(seq {}); do {} && exit 0; sleep 1; done", kWorkerRestarts, worker);
  return fmt::format(
      R"(start_workers() {{
  srun --mpi=none --nodes={} --ntasks={} --cpus-per-task={} bash -c {} &
  workers=$!
}}
)",
      job.worker_nodes(), job.workers, job.worker_threads, ShellQuoted(again));
}

constexpr char kBody[] = R"(
learner='' workers='' requeue=0 stopping=0 code=75
# mpirun and srun hand SIGUSR1 to the ranks: they write a checkpoint and end with 75.
stop() {
  stopping=1 trapped=1
  [ -n "$learner" ] && kill -USR1 "$learner"
}
trap 'requeue=1; stop' USR1   # the time limit is near
trap stop TERM                # somebody, or a preemption, which SLURM requeues by itself

start_workers
for attempt in $(seq 0 $restarts); do
  [ "$stopping" = 1 ] && break   # the signal met no learners
  start_learner
  [ "$stopping" = 1 ] && kill -USR1 "$learner"   # or they were just being started
  trapped=1
  while [ -n "$trapped" ]; do
    trapped=''
    wait "$learner"   # a trapped signal ends this too, with a code of its own
    code=$?
  done
  learner=''
  case $code in 0|2|75) break ;; esac
  [ "$stopping" = 1 ] && break
  echo "hone: the learners ended with $code; start $((attempt + 1)) of $restarts again, from the last checkpoint"
  sleep $((attempt + 1))
done
[ -n "$workers" ] && kill "$workers" 2>/dev/null
# Whatever the learners ended with near the time limit: theirs may have met a crash, or a start.
if [ "$requeue" = 1 ] && [ "$code" != 0 ] && [ "$code" != 2 ]; then
  echo "hone: job $SLURM_JOB_ID goes on when it is its turn again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
)";

}  // namespace

const std::vector<std::string>& SlurmLauncherNames() {
  static const std::vector<std::string> names = {"mpirun", "pmix", "tcp"};
  return names;
}

std::string ShellQuoted(const std::string& text) {
  std::string inside;
  for (char c : text) {
    if (c == '\'') {
      inside += "'\\''";
    } else {
      inside += c;
    }
  }
  return fmt::format("'{}'", inside);
}

std::string SlurmScript(const SlurmJob& job) {
  return Header(job) +
         fmt::format(R"(
cd {} || exit 1
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export SLURM_OVERLAP=1   # learners and workers share the job's nodes
restarts={}

{}start_learner() {{
  {} &
  learner=$!
}}
)",
                     ShellQuoted(job.work_dir), kLearnerRestarts, WorkersFunction(job),
                     LearnerCommand(job)) +
         kBody;
}

}  // namespace hone::launcher
