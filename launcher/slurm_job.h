// The batch script of a run under SLURM, as a pure function.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace hone::launcher {

// How the learner ranks of a job are started and meet.
enum class SlurmLauncher {
  kMpirun,  // Open MPI built with SLURM support: mpirun inside the job
  kPmix,    // srun --mpi=pmix
  kTcp,     // srun, and ranks that meet over TCP: where SLURM has no PMIx
};
const std::vector<std::string>& SlurmLauncherNames();  // mpirun pmix tcp

struct SlurmJob {
  std::string name = "hone";
  std::string program = "hone";  // on every node, like the folders below
  std::string work_dir, run_dir, config;
  std::string until;
  SlurmLauncher launcher = SlurmLauncher::kMpirun;
  bool as_root = false;  // mpirun wants to be told
  int nodes = 1;
  int ranks = 1, threads = 1;               // learners
  int workers = 0, worker_threads = 1;      // rollout, over all nodes
  std::vector<std::string> worker_options;  // of `hone worker`, beside the run's folder and a name
  std::string time = "24:00:00";
  int notice_seconds = 300;         // before the time limit: for a checkpoint
  std::vector<std::string> sbatch;  // more options, "--partition=gpu"

  int worker_nodes() const { return std::min(nodes, workers); }
  int ranks_per_node() const { return (ranks + nodes - 1) / nodes; }
};

// What the job does: starts the workers and the learner ranks, and starts learners that died again
// from the last checkpoint, a few times. Before the time limit SLURM signals it; the learners then
// write a checkpoint and end with 75, and the job is put back into the queue to go on. It ends with
// the learners' exit code.
std::string SlurmScript(const SlurmJob& job);

// One word of a shell command.
std::string ShellQuoted(const std::string& text);

}  // namespace hone::launcher
