// Ranks that find each other by an address instead of MPI: for sites whose SLURM has no PMIx, and
// for NCCL, which wants one blob handed from rank 0 to everyone.
//
// Rank 0 listens, all connect to it, and what they exchange passes through it: right for control
// data and host tensors of moderate size, not for gradients of large models.
#pragma once

#include <string>

#include "parallel/comm/process_group.h"

namespace hone::parallel {

struct TcpOptions {
  int rank = 0, size = 1;
  std::string host;  // of rank 0
  int port = 0;
  std::string token;  // the same on every rank of a job; who comes without it is turned away
};

// HONE_MASTER (HOST:PORT), HONE_RANK, HONE_SIZE and HONE_TOKEN; what is not set comes from SLURM:
// the first node of the step, a port made of the job's number, SLURM_PROCID, SLURM_NTASKS. size 1
// when neither says anything. ConfigError on a value that is no such thing.
TcpOptions TcpOptionsFromEnvironment();

// The first node of a list as SLURM writes it: "gpu[07-09,12],login" → "gpu07".
std::string FirstNode(const std::string& list);

// Collective over the job: returns when all ranks are there. Past the deadline TimeoutError, which
// on rank 0 and on every rank that has reached it names the ranks that did not come. The group does
// everything of ProcessGroup's contract with host tensors; reductions are in rank order. When the
// last group of rank 0 goes, it waits for the others to leave, as MPI does.
GroupPtr MakeTcpGroup(const TcpOptions& options, GroupOptions group_options = {});

}  // namespace hone::parallel
