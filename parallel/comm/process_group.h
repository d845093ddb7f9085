// Collectives and messages between ranks.
//
// Every rank of a group calls the same collectives in the same order. Reductions add in rank order,
// so thread and MPI groups give the same bits. An operation is asynchronous: it may read and write
// its tensors until Wait returns. Waiting past the group's deadline throws TimeoutError naming
// group, rank, operation and peers; a waiting rank sleeps.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/rendezvous.h"
#include "runtime/tensor.h"

namespace hone::parallel {

class Work {
 public:
  virtual ~Work() = default;
  virtual bool Done() = 0;
  virtual void Wait() = 0;  // rethrows the operation's error; may be called again
};
using WorkPtr = std::shared_ptr<Work>;

enum class ReduceOp { kSum, kMax };

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual const std::string& name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Whose tensors it moves, beside those of the host.
  virtual Device device() const { return Device::Cpu(); }

  // Tensors are contiguous. Sums of bf16 are accumulated in f32 and rounded once.
  virtual WorkPtr AllReduce(const Tensor& tensor, ReduceOp op = ReduceOp::kSum) = 0;
  // input [size · n] → output [n], this rank's chunk of the sum.
  virtual WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) = 0;
  // input [n] → output [size · n], in rank order.
  virtual WorkPtr AllGather(const Tensor& input, const Tensor& output) = 0;
  // Rows of dim 0, send_rows[r] of them to rank r; recv_rows[r] arrive from rank r.
  virtual WorkPtr AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows,
                           const Tensor& recv, const std::vector<int64_t>& recv_rows) = 0;
  virtual WorkPtr Broadcast(const Tensor& tensor, int root) = 0;
  // Messages between two ranks are matched by tag, in order within a tag. Sending does not wait for
  // the receiver, and the tensor is free when Send returns. Tags: [0, 8192), but fewer with an MPI
  // whose own tags end below 2^19; [0, 65536) with threads and most MPIs.
  virtual WorkPtr Send(const Tensor& tensor, int peer, int tag) = 0;
  virtual WorkPtr Receive(const Tensor& tensor, int peer, int tag) = 0;

  // A subgroup; collective over this group. Ranks with the same color form one, in order of key.
  // A rank with color < 0 gets nullptr.
  virtual std::shared_ptr<ProcessGroup> Split(int color, int key, const std::string& name) = 0;

  // Control plane, blocking, small data.
  virtual std::vector<std::string> AllGatherBytes(const std::string& bytes) = 0;
  void Barrier() { AllGatherBytes(""); }
};
using GroupPtr = std::shared_ptr<ProcessGroup>;

struct GroupOptions {
  std::chrono::milliseconds deadline = std::chrono::minutes(10);
};

// A group of one: every operation is a copy or nothing.
GroupPtr MakeSingleGroup();
// Runs fn(group) on `size` threads, each a rank; returns when all have returned and rethrows the
// first error (after which the other ranks' operations fail rather than hang).
void RunThreadRanks(int size, const std::function<void(GroupPtr)>& fn, GroupOptions options = {});
// MPI_COMM_WORLD. Initialises MPI (MPI_THREAD_MULTIPLE not needed: one communication thread makes
// every call and sleeps between tests). Call once. When the last group of the process goes, it
// waits for the other ranks to get there and finalises; while an exception unwinds it does not, and
// the launcher, which sees a process end without, ends the others.
GroupPtr MakeMpiGroup(GroupOptions options = {});
// True when started by mpirun or srun with PMI: MakeMpiGroup would have more than this process.
bool StartedByMpi();

// A group as the checkpoint writer wants it.
std::shared_ptr<runtime::Rendezvous> MakeRendezvous(GroupPtr group);

}  // namespace hone::parallel
