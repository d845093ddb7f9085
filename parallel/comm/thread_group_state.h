// The shared side of ranks as threads: what they bring to a collective, where messages wait, and
// waiting.
//
// Every rank of a group numbers its collectives; the ranks' n-th calls meet in one Collective. The
// rank that arrives last does the whole operation on all ranks' tensors, outside the lock, and
// wakes the others: nobody polls, and no rank waits for another to *wait*. Messages go into a
// mailbox by (source, destination, tag), or straight into a receive that waits there.
//
// All ranks share one lock and have a condition variable each. When one rank fails, the world is
// marked failed and every wait, present or later, throws.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "parallel/comm/process_group.h"

namespace hone::parallel {

struct ThreadWorld {
  ThreadWorld(int size, GroupOptions group_options) : options(group_options), wake(size) {}
  void Fail(const std::string& reason);

  const GroupOptions options;
  std::mutex mutex;                           // of all that follows, in every group
  std::vector<std::condition_variable> wake;  // a world rank
  std::string failure;
};

// What one rank brings to a collective.
struct Part {
  Tensor in = {}, out = {};
  std::vector<int64_t> send_rows = {}, recv_rows = {};
  std::string bytes = {};
  std::shared_ptr<std::vector<std::string>> gathered = nullptr;
};
using Parts = std::vector<Part>;

// Something that a rank can wait for.
struct Pending {
  virtual ~Pending() = default;
  virtual std::string Missing() const = 0;  // the ranks it still needs

  bool running = false;  // reading and writing tensors now: not to be abandoned
  bool done = false;
  std::exception_ptr error;
  std::string given_up_for;  // the ranks that were missing when a wait passed the deadline
};

struct Collective : Pending {
  std::string Missing() const override;

  std::string signature;
  int first_rank = 0;  // whose call gave the signature
  std::vector<bool> arrived;
  int missing = 0;
  Parts parts;
};

struct Receipt : Pending {
  std::string Missing() const override;
  void Deliver(const std::string& where, const void* data, int64_t bytes);

  int peer = 0, tag = 0;
  Tensor into;
};

struct ThreadGroupState {
  using Route = std::tuple<int, int, int>;  // source, destination, tag

  ThreadGroupState(std::shared_ptr<ThreadWorld> w, std::string n, std::vector<int> ranks)
      : world(std::move(w)), name(std::move(n)), world_ranks(std::move(ranks)) {}

  int size() const { return static_cast<int>(world_ranks.size()); }
  std::string Place(int rank) const;  // "group dp, rank 1 of 4"
  // The rest with world->mutex held.
  void WakeAll();
  // The number-th collective, with `rank` arrived and its part in place. CommError when the world
  // has failed, TimeoutError when others have given this rank up.
  std::shared_ptr<Collective> Join(int rank, uint64_t number, const std::string& op,
                                   const std::string& signature, Part part);

  const std::shared_ptr<ThreadWorld> world;
  const std::string name;
  const std::vector<int> world_ranks;
  std::map<uint64_t, std::shared_ptr<Collective>> open;
  std::map<Route, std::deque<std::string>> mail;
  std::map<Route, std::deque<std::shared_ptr<Receipt>>> receipts;
  std::map<std::pair<int, int>, std::shared_ptr<ThreadGroupState>> children;  // (n-th split, color)
};

class ThreadWork : public Work {
 public:
  ThreadWork(std::shared_ptr<ThreadGroupState> group, int rank, std::string op,
             std::shared_ptr<Pending> pending);
  bool Done() override;
  void Wait() override;

 private:
  std::shared_ptr<ThreadGroupState> group_;
  int rank_;
  std::string op_;
  std::shared_ptr<Pending> pending_;
};

// The operations, on the parts of all ranks.
void RunAllReduce(ReduceOp op, Parts& parts);
void RunReduceScatter(Parts& parts);
void RunAllGather(Parts& parts);
void RunAllToAll(const std::string& where, Parts& parts);
void RunBroadcast(int root, Parts& parts);
void RunGatherBytes(Parts& parts);

}  // namespace hone::parallel
