// Ranks as threads of one process.
//
// Every rank of a group numbers its collectives; the ranks' n-th calls meet in one Collective
// record. The rank that arrives last does the whole operation on all ranks' tensors, outside the
// lock, and wakes the others: nobody polls, and no rank waits for another to *wait*. Messages go
// into a mailbox by (source, destination, tag), or straight into a receive that waits there.
//
// All ranks share one lock and have a condition variable each. When one rank fails, the world is
// marked failed and every wait, present or later, throws.

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>

#include "parallel/comm/list_text.h"
#include "parallel/comm/process_group.h"
#include "parallel/comm/reduction.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int kTags = 1 << 16;  // as many as Open MPI leaves to a group

struct World {
  World(int size, GroupOptions group_options) : options(group_options), wake(size) {}

  void Fail(const std::string& reason) {
    std::lock_guard lock(mutex);
    if (failure.empty()) failure = reason;
    for (auto& condition : wake) condition.notify_all();
  }

  const GroupOptions options;
  std::mutex mutex;
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

struct Collective {
  std::string signature;
  int first_rank = 0;  // whose call gave the signature
  std::vector<bool> arrived;
  int missing = 0;
  Parts parts;
  bool done = false;
  std::exception_ptr error;
};

struct Receipt {
  Tensor into;
  bool done = false;
  std::exception_ptr error;
};

struct GroupState {
  GroupState(std::shared_ptr<World> w, std::string n, std::vector<int> ranks)
      : world(std::move(w)), name(std::move(n)), world_ranks(std::move(ranks)) {}

  int size() const { return static_cast<int>(world_ranks.size()); }
  // With world->mutex held.
  void WakeAll() {
    for (int r : world_ranks) world->wake[r].notify_all();
  }

  const std::shared_ptr<World> world;
  const std::string name;
  const std::vector<int> world_ranks;
  std::map<uint64_t, std::shared_ptr<Collective>> open;
  using Route = std::tuple<int, int, int>;  // source, destination, tag
  std::map<Route, std::deque<std::string>> mail;
  std::map<Route, std::deque<std::shared_ptr<Receipt>>> receipts;
  std::map<std::pair<int, int>, std::shared_ptr<GroupState>> children;  // (n-th split, color)
};

void Deliver(const std::string& where, const void* data, int64_t bytes, Receipt& receipt) {
  if (bytes == receipt.into.bytes()) {
    if (bytes > 0) std::memcpy(receipt.into.raw(), data, bytes);
  } else {
    receipt.error = std::make_exception_ptr(CommError(fmt::format(
        "{}: the message has {} bytes, the buffer {}", where, bytes, receipt.into.bytes())));
  }
  receipt.done = true;
}

// A wait of one rank: `done` and `missing` are read with the lock held, `give_up` is told the
// timeout.
class ThreadWork : public Work {
 public:
  ThreadWork(std::shared_ptr<GroupState> group, int rank, std::string op)
      : group_(std::move(group)), rank_(rank), op_(std::move(op)) {}

  bool Done() override {
    std::lock_guard lock(group_->world->mutex);
    return IsDone() || !group_->world->failure.empty();
  }

  void Wait() override {
    World& world = *group_->world;
    std::unique_lock lock(world.mutex);
    auto& wake = world.wake[group_->world_ranks[rank_]];
    // An operation that has begun reads and writes this rank's tensors: it is always waited for.
    auto ended = [&] { return IsDone() || (!world.failure.empty() && !Running()); };
    if (!wake.wait_for(lock, world.options.deadline, ended) && !Running()) {
      TimeoutError error(fmt::format("[{}] {}: waited {:.1f} s for rank {}", op_, Place(),
                                     std::chrono::duration<double>(world.options.deadline).count(),
                                     Missing()));
      GiveUp(error);
      throw error;
    }
    wake.wait(lock, ended);
    if (!IsDone()) throw CommError(fmt::format("[{}] {}: {}", op_, Place(), world.failure));
    if (Error()) std::rethrow_exception(Error());
  }

 protected:
  // With the lock held.
  virtual bool IsDone() const = 0;
  virtual bool Running() const { return false; }
  virtual std::exception_ptr Error() const = 0;
  virtual std::string Missing() const = 0;
  virtual void GiveUp(const TimeoutError& error) = 0;

  std::string Place() const {
    return fmt::format("group {}, rank {} of {}", group_->name, rank_, group_->size());
  }

  std::shared_ptr<GroupState> group_;
  int rank_;
  std::string op_;
};

class CollectiveWork : public ThreadWork {
 public:
  CollectiveWork(std::shared_ptr<GroupState> group, int rank, std::string op,
                 std::shared_ptr<Collective> collective)
      : ThreadWork(std::move(group), rank, std::move(op)), collective_(std::move(collective)) {}

 protected:
  bool IsDone() const override { return collective_->done; }
  bool Running() const override { return collective_->missing == 0 && !collective_->done; }
  std::exception_ptr Error() const override { return collective_->error; }
  std::string Missing() const override {
    std::vector<int> missing;
    for (int r = 0; r < group_->size(); ++r) {
      if (!collective_->arrived[r]) missing.push_back(r);
    }
    return ListText(missing);
  }
  // Who comes later must not find this rank's tensors gone: it gets the same error.
  void GiveUp(const TimeoutError& error) override {
    collective_->error = std::make_exception_ptr(error);
    collective_->done = true;
    group_->WakeAll();
  }

 private:
  std::shared_ptr<Collective> collective_;
};

class ReceiveWork : public ThreadWork {
 public:
  ReceiveWork(std::shared_ptr<GroupState> group, int rank, int peer, int tag,
              std::shared_ptr<Receipt> receipt)
      : ThreadWork(std::move(group), rank, "receive"),
        peer_(peer),
        tag_(tag),
        receipt_(std::move(receipt)) {}

 protected:
  bool IsDone() const override { return receipt_->done; }
  std::exception_ptr Error() const override { return receipt_->error; }
  std::string Missing() const override { return fmt::format("{} (tag {})", peer_, tag_); }
  void GiveUp(const TimeoutError& error) override {
    receipt_->error = std::make_exception_ptr(error);
    receipt_->done = true;
    std::erase(group_->receipts[{peer_, rank_, tag_}], receipt_);
  }

 private:
  int peer_, tag_;
  std::shared_ptr<Receipt> receipt_;
};

class FinishedWork : public Work {
 public:
  bool Done() override { return true; }
  void Wait() override {}
};

char* At(const Tensor& tensor, int64_t byte) { return static_cast<char*>(tensor.raw()) + byte; }

void CopyPart(char* to, const char* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, bytes);
}

void RunAllReduce(ReduceOp op, Parts& parts) {
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (Part& part : parts) {
    inputs.push_back(part.in.raw());
    outputs.push_back(part.in.raw());
  }
  ReduceInRankOrder(op, parts[0].in.dtype(), inputs, outputs, parts[0].in.size());
}

void RunReduceScatter(Parts& parts) {
  for (size_t r = 0; r < parts.size(); ++r) {
    std::vector<const void*> inputs;
    for (Part& part : parts) inputs.push_back(At(part.in, parts[r].out.bytes() * r));
    ReduceInRankOrder(ReduceOp::kSum, parts[r].out.dtype(), inputs, {parts[r].out.raw()},
                      parts[r].out.size());
  }
}

void RunAllGather(Parts& parts) {
  for (Part& to : parts) {
    for (size_t r = 0; r < parts.size(); ++r) {
      int64_t bytes = parts[r].in.bytes();
      CopyPart(At(to.out, bytes * r), At(parts[r].in, 0), bytes);
    }
  }
}

void RunAllToAll(const std::string& where, Parts& parts) {
  std::vector<int64_t> sent(parts.size(), 0);  // rows already taken from each source
  for (size_t d = 0; d < parts.size(); ++d) {
    int64_t row = RowBytes(parts[d].out), received = 0;
    for (size_t s = 0; s < parts.size(); ++s) {
      int64_t rows = parts[s].send_rows[d];
      Check<CommError>(rows == parts[d].recv_rows[s] && RowBytes(parts[s].in) == row,
                       "{}: rank {} sends {} rows to rank {}, which expects {}", where, s, rows, d,
                       parts[d].recv_rows[s]);
      CopyPart(At(parts[d].out, received * row), At(parts[s].in, sent[s] * row), rows * row);
      received += rows;
      sent[s] += rows;
    }
  }
}

void RunBroadcast(int root, Parts& parts) {
  for (Part& part : parts) {
    CopyPart(At(part.in, 0), At(parts[root].in, 0), part.in.bytes());
  }
}

void RunGatherBytes(Parts& parts) {
  for (Part& to : parts) {
    for (Part& from : parts) to.gathered->push_back(from.bytes);
  }
}

class ThreadProcessGroup : public ProcessGroup {
 public:
  ThreadProcessGroup(std::shared_ptr<GroupState> state, int rank)
      : state_(std::move(state)), rank_(rank) {}

  const std::string& name() const override { return state_->name; }
  int rank() const override { return rank_; }
  int size() const override { return state_->size(); }

  WorkPtr AllReduce(const Tensor& tensor, ReduceOp op) override {
    CheckContiguous(*this, "all_reduce", tensor);
    std::string signature = Signature(op == ReduceOp::kSum ? "sum" : "max", tensor);
    return Post("all_reduce", signature, {.in = tensor}, [op](Parts& p) { RunAllReduce(op, p); });
  }

  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) override {
    CheckReduceScatter(*this, input, output);
    return Post("reduce_scatter", Signature("sum", input), {.in = input, .out = output},
                RunReduceScatter);
  }

  WorkPtr AllGather(const Tensor& input, const Tensor& output) override {
    CheckAllGather(*this, input, output);
    return Post("all_gather", Signature("of", input), {.in = input, .out = output}, RunAllGather);
  }

  WorkPtr AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows) override {
    CheckAllToAll(*this, send, send_rows, recv, recv_rows);
    Part part{.in = send, .out = recv, .send_rows = send_rows, .recv_rows = recv_rows};
    std::string where = fmt::format("[all_to_all] group {}", name());
    return Post("all_to_all", "", std::move(part), [where](Parts& p) { RunAllToAll(where, p); });
  }

  WorkPtr Broadcast(const Tensor& tensor, int root) override {
    CheckContiguous(*this, "broadcast", tensor);
    CheckPeer(*this, "broadcast", root);
    return Post("broadcast", Signature(fmt::format("from {}", root), tensor), {.in = tensor},
                [root](Parts& p) { RunBroadcast(root, p); });
  }

  WorkPtr Send(const Tensor& tensor, int peer, int tag) override {
    CheckMessage(*this, "send", tensor, peer, tag, kTags);
    std::lock_guard lock(world().mutex);
    GroupState::Route route{rank_, peer, tag};
    auto& waiting = state_->receipts[route];
    if (waiting.empty()) {
      state_->mail[route].emplace_back(static_cast<const char*>(tensor.raw()), tensor.bytes());
    } else {
      Deliver(ReceiveWhere(rank_, peer, tag), tensor.raw(), tensor.bytes(), *waiting.front());
      waiting.pop_front();
      world().wake[state_->world_ranks[peer]].notify_all();
    }
    return std::make_shared<FinishedWork>();
  }

  WorkPtr Receive(const Tensor& tensor, int peer, int tag) override {
    CheckMessage(*this, "receive", tensor, peer, tag, kTags);
    auto receipt = std::make_shared<Receipt>();
    receipt->into = tensor;
    std::lock_guard lock(world().mutex);
    GroupState::Route route{peer, rank_, tag};
    auto& mail = state_->mail[route];
    if (mail.empty()) {
      state_->receipts[route].push_back(receipt);
    } else {
      Deliver(ReceiveWhere(peer, rank_, tag), mail.front().data(),
              static_cast<int64_t>(mail.front().size()), *receipt);
      mail.pop_front();
    }
    return std::make_shared<ReceiveWork>(state_, rank_, peer, tag, receipt);
  }

  GroupPtr Split(int color, int key, const std::string& name) override {
    std::vector<std::string> all = AllGatherBytes(fmt::format("{} {}", color, key));
    int split = splits_++;
    if (color < 0) return nullptr;
    std::vector<std::pair<int, int>> members;  // key, rank
    for (int r = 0; r < size(); ++r) {
      int their_color = 0, their_key = 0;
      std::sscanf(all[r].c_str(), "%d %d", &their_color, &their_key);
      if (their_color == color) members.emplace_back(their_key, r);
    }
    std::sort(members.begin(), members.end());
    std::vector<int> world_ranks;
    int new_rank = 0;
    for (auto [_, r] : members) {
      if (r == rank_) new_rank = static_cast<int>(world_ranks.size());
      world_ranks.push_back(state_->world_ranks[r]);
    }
    std::lock_guard lock(world().mutex);
    auto& child = state_->children[{split, color}];
    if (!child) child = std::make_shared<GroupState>(state_->world, name, std::move(world_ranks));
    return std::make_shared<ThreadProcessGroup>(child, new_rank);
  }

  std::vector<std::string> AllGatherBytes(const std::string& bytes) override {
    auto gathered = std::make_shared<std::vector<std::string>>();
    Post("all_gather_bytes", "", {.bytes = bytes, .gathered = gathered}, RunGatherBytes)->Wait();
    return std::move(*gathered);
  }

 private:
  World& world() { return *state_->world; }

  std::string ReceiveWhere(int source, int destination, int tag) const {
    return fmt::format("[receive] group {}, rank {} from rank {}, tag {}", name(), destination,
                       source, tag);
  }

  template <class Run>
  WorkPtr Post(const std::string& op, const std::string& details, Part part, const Run& run) {
    std::string signature = details.empty() ? op : op + " " + details;
    std::shared_ptr<Collective> collective;
    bool last = false;
    {
      std::lock_guard lock(world().mutex);
      Check<CommError>(world().failure.empty(), "[{}] group {}, rank {} of {}: {}", op, name(),
                       rank_, size(), world().failure);
      collective = Join(signature, std::move(part));
      last = collective->missing == 0 && !collective->done;
    }
    if (last) {
      std::exception_ptr error;
      try {
        run(collective->parts);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard lock(world().mutex);
      collective->error = error;
      collective->done = true;
      collective->parts.clear();
      state_->WakeAll();
    }
    return std::make_shared<CollectiveWork>(state_, rank_, op, collective);
  }

  // With the lock held: this rank's next collective, with its part in place.
  std::shared_ptr<Collective> Join(const std::string& signature, Part part) {
    uint64_t number = next_++;
    auto& slot = state_->open[number];
    if (!slot) {
      slot = std::make_shared<Collective>();
      slot->signature = signature;
      slot->first_rank = rank_;
      slot->arrived.resize(size());
      slot->missing = size();
      slot->parts.resize(size());
    }
    std::shared_ptr<Collective> collective = slot;
    if (collective->signature != signature && !collective->done) {
      collective->error = std::make_exception_ptr(CommError(
          fmt::format("[{}] group {}: rank {} calls it where rank {} called {}", signature, name(),
                      rank_, collective->first_rank, collective->signature)));
      collective->done = true;
      state_->WakeAll();
    }
    collective->arrived[rank_] = true;
    if (!collective->done) collective->parts[rank_] = std::move(part);
    if (--collective->missing == 0) state_->open.erase(number);
    return collective;
  }

  std::shared_ptr<GroupState> state_;
  int rank_;
  uint64_t next_ = 0;
  int splits_ = 0;
};

std::shared_ptr<GroupState> MakeWorld(int size, GroupOptions options) {
  std::vector<int> ranks(size);
  for (int r = 0; r < size; ++r) ranks[r] = r;
  return std::make_shared<GroupState>(std::make_shared<World>(size, options), "world",
                                      std::move(ranks));
}

}  // namespace

GroupPtr MakeSingleGroup() { return std::make_shared<ThreadProcessGroup>(MakeWorld(1, {}), 0); }

void RunThreadRanks(int size, const std::function<void(GroupPtr)>& fn, GroupOptions options) {
  Check<ConfigError>(size >= 1, "[thread_ranks] {} ranks", size);
  std::shared_ptr<GroupState> state = MakeWorld(size, options);
  std::mutex mutex;
  std::exception_ptr first;
  auto run = [&](int rank) {
    std::string reason;
    std::exception_ptr failure;
    try {
      fn(std::make_shared<ThreadProcessGroup>(state, rank));
      return;
    } catch (const std::exception& error) {
      reason = error.what();
      failure = std::current_exception();
    } catch (...) {
      reason = "an unknown error";
      failure = std::current_exception();
    }
    {
      std::lock_guard lock(mutex);
      if (!first) first = failure;
    }
    state->world->Fail(fmt::format("rank {} failed: {}", rank, reason));
  };
  std::vector<std::thread> threads;
  for (int r = 1; r < size; ++r) threads.emplace_back(run, r);
  run(0);
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace hone::parallel
