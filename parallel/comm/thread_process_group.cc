// Ranks as threads of one process: see thread_group_state.h for how they meet.
#include <algorithm>
#include <cstdio>
#include <thread>

#include "parallel/comm/process_group.h"
#include "parallel/comm/reduction.h"
#include "parallel/comm/thread_group_state.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int kTags = 1 << 16;  // as many as Open MPI leaves to a group

class FinishedWork : public Work {
 public:
  bool Done() override { return true; }
  void Wait() override {}
};

class ThreadProcessGroup : public ProcessGroup {
 public:
  ThreadProcessGroup(std::shared_ptr<ThreadGroupState> state, int rank)
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
    ThreadGroupState::Route route{rank_, peer, tag};
    auto& waiting = state_->receipts[route];
    while (!waiting.empty() && waiting.front()->done) waiting.pop_front();  // given up
    if (waiting.empty()) {
      state_->mail[route].emplace_back(static_cast<const char*>(tensor.raw()), tensor.bytes());
    } else {
      waiting.front()->Deliver(ReceiveWhere(rank_, peer, tag), tensor.raw(), tensor.bytes());
      waiting.pop_front();
      world().wake[state_->world_ranks[peer]].notify_all();
    }
    return std::make_shared<FinishedWork>();
  }

  WorkPtr Receive(const Tensor& tensor, int peer, int tag) override {
    CheckMessage(*this, "receive", tensor, peer, tag, kTags);
    auto receipt = std::make_shared<Receipt>();
    receipt->peer = peer;
    receipt->tag = tag;
    receipt->into = tensor;
    std::lock_guard lock(world().mutex);
    ThreadGroupState::Route route{peer, rank_, tag};
    auto& mail = state_->mail[route];
    if (mail.empty()) {
      state_->receipts[route].push_back(receipt);
    } else {
      receipt->Deliver(ReceiveWhere(peer, rank_, tag), mail.front().data(),
                       static_cast<int64_t>(mail.front().size()));
      mail.pop_front();
    }
    return std::make_shared<ThreadWork>(state_, rank_, "receive", receipt);
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
    if (!child)
      child = std::make_shared<ThreadGroupState>(state_->world, name, std::move(world_ranks));
    return std::make_shared<ThreadProcessGroup>(child, new_rank);
  }

  std::vector<std::string> AllGatherBytes(const std::string& bytes) override {
    auto gathered = std::make_shared<std::vector<std::string>>();
    Post("all_gather_bytes", "", {.bytes = bytes, .gathered = gathered}, RunGatherBytes)->Wait();
    return std::move(*gathered);
  }

 private:
  ThreadWorld& world() { return *state_->world; }

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
      collective = state_->Join(rank_, next_++, op, signature, std::move(part));
      last = collective->running;
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
      collective->running = false;
      collective->done = true;
      collective->parts.clear();
      state_->WakeAll();
    }
    return std::make_shared<ThreadWork>(state_, rank_, op, collective);
  }

  std::shared_ptr<ThreadGroupState> state_;
  int rank_;
  uint64_t next_ = 0;
  int splits_ = 0;
};

std::shared_ptr<ThreadGroupState> MakeWorld(int size, GroupOptions options) {
  std::vector<int> ranks(size);
  for (int r = 0; r < size; ++r) ranks[r] = r;
  return std::make_shared<ThreadGroupState>(std::make_shared<ThreadWorld>(size, options), "world",
                                            std::move(ranks));
}

}  // namespace

GroupPtr MakeSingleGroup() { return std::make_shared<ThreadProcessGroup>(MakeWorld(1, {}), 0); }

void RunThreadRanks(int size, const std::function<void(GroupPtr)>& fn, GroupOptions options) {
  Check<ConfigError>(size >= 1, "[thread_ranks] {} ranks", size);
  std::shared_ptr<ThreadGroupState> state = MakeWorld(size, options);
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
