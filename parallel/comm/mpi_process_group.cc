// Collectives over MPI messages. Each is written as rounds of transfers with this code's own sums
// between them, in rank order, rather than as an MPI collective, whose order of additions is its
// own affair: so the bits are those of the thread group, and a timeout can name the ranks that did
// not come.
//
//   all_reduce      small: everyone sends everything to everyone, one round; large: a chunk to each
//   rank,
//                   which sums it and sends it back, two rounds
//   reduce_scatter  a chunk to each rank, which sums
//   all_gather, all_to_all, broadcast: direct
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "parallel/comm/mpi_engine.h"
#include "parallel/comm/process_group.h"
#include "parallel/comm/reduction.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int64_t kSmall = 16 << 10;  // bytes
constexpr int kMaxRounds = 4;

using Kind = Transfer::Kind;
using Transfers = std::vector<Transfer>;
using Scratch = std::shared_ptr<char[]>;

Scratch MakeScratch(int64_t bytes) { return std::make_shared_for_overwrite<char[]>(bytes); }

char* At(const Tensor& tensor, int64_t byte) { return static_cast<char*>(tensor.raw()) + byte; }

class MpiWork : public Work {
 public:
  MpiWork(std::shared_ptr<MpiEngine> engine, std::shared_ptr<MpiOperation> operation)
      : engine_(std::move(engine)), operation_(std::move(operation)) {}
  bool Done() override {
    std::lock_guard lock(operation_->mutex);
    return operation_->done;
  }
  void Wait() override { engine_->Wait(*operation_); }

 private:
  std::shared_ptr<MpiEngine> engine_;
  std::shared_ptr<MpiOperation> operation_;
};

class FinishedWork : public Work {
 public:
  bool Done() override { return true; }
  void Wait() override {}
};

// Who is who: shared with operations, which may outlive the group.
struct Members {
  std::vector<int> world_ranks;
  int rank;

  int size() const { return static_cast<int>(world_ranks.size()); }
  Transfer To(int peer, void* data, int64_t bytes) const {
    return {Kind::kSend, world_ranks[peer], data, bytes};
  }
  Transfer From(int peer, void* data, int64_t bytes) const {
    return {Kind::kReceive, world_ranks[peer], data, bytes};
  }
  // The other ranks, from the next one on: not everyone begins with the same.
  std::vector<int> Peers() const {
    std::vector<int> peers;
    for (int i = 1; i < size(); ++i) peers.push_back((rank + i) % size());
    return peers;
  }
  // Where rank r's `bytes` lie in a buffer for all ranks but this one.
  int64_t SlotOf(int r, int64_t bytes) const { return (r < rank ? r : r - 1) * bytes; }
};

class MpiProcessGroup : public ProcessGroup {
 public:
  MpiProcessGroup(std::shared_ptr<MpiEngine> engine, std::string name, int number, Members members)
      : engine_(std::move(engine)),
        name_(std::move(name)),
        number_(number),
        at_(std::make_shared<const Members>(std::move(members))) {}

  const std::string& name() const override { return name_; }
  int rank() const override { return at_->rank; }
  int size() const override { return at_->size(); }

  WorkPtr AllReduce(const Tensor& tensor, ReduceOp op) override;
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) override;
  WorkPtr AllGather(const Tensor& input, const Tensor& output) override;
  WorkPtr AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows) override;
  WorkPtr Broadcast(const Tensor& tensor, int root) override;
  WorkPtr Send(const Tensor& tensor, int peer, int tag) override;
  WorkPtr Receive(const Tensor& tensor, int peer, int tag) override;
  GroupPtr Split(int color, int key, const std::string& name) override;
  std::vector<std::string> AllGatherBytes(const std::string& bytes) override;

 private:
  using NextRound = std::function<bool(int, Transfers*)>;

  std::shared_ptr<MpiOperation> MakeOperation(const std::string& op, NextRound next_round) const;
  WorkPtr Start(std::shared_ptr<MpiOperation> operation) const;
  WorkPtr StartCollective(const std::string& op, NextRound next_round);
  WorkPtr StartMessage(const std::string& op, int tag, NextRound next_round) const;
  WorkPtr AllReduceDirect(const Tensor& tensor, ReduceOp op);

  std::shared_ptr<MpiEngine> engine_;
  std::string name_;
  int number_;  // of the group: the upper bits of its tags
  std::shared_ptr<const Members> at_;
  int64_t collectives_ = 0;
};

std::shared_ptr<MpiOperation> MpiProcessGroup::MakeOperation(const std::string& op,
                                                             NextRound next_round) const {
  auto operation = std::make_shared<MpiOperation>();
  operation->place = fmt::format("[{}] group {}, rank {} of {}", op, name_, rank(), size());
  operation->group_rank = [at = at_](int world_rank) {
    const auto& ranks = at->world_ranks;
    return static_cast<int>(std::find(ranks.begin(), ranks.end(), world_rank) - ranks.begin());
  };
  operation->next_round = std::move(next_round);
  return operation;
}

WorkPtr MpiProcessGroup::Start(std::shared_ptr<MpiOperation> operation) const {
  auto work = std::make_shared<MpiWork>(engine_, operation);
  engine_->Submit(std::move(operation));
  return work;
}

WorkPtr MpiProcessGroup::StartCollective(const std::string& op, NextRound next_round) {
  auto operation = MakeOperation(op, std::move(next_round));
  int64_t first = kMaxRounds * collectives_++;
  operation->tag = [group = number_ << engine_->payload_bits(), first,
                    mask = (1 << engine_->payload_bits()) - 1](int round) {
    return group | (static_cast<int>(first + round) & mask);
  };
  return Start(std::move(operation));
}

WorkPtr MpiProcessGroup::StartMessage(const std::string& op, int tag, NextRound next_round) const {
  auto operation = MakeOperation(fmt::format("{}, tag {}", op, tag), std::move(next_round));
  operation->channel = Channel::kMessages;
  operation->tag = [t = number_ << engine_->payload_bits() | tag](int) { return t; };
  return Start(std::move(operation));
}

WorkPtr MpiProcessGroup::AllReduceDirect(const Tensor& tensor, ReduceOp op) {
  int64_t bytes = tensor.bytes();
  Scratch scratch = MakeScratch(bytes * (size() - 1));
  return StartCollective("all_reduce", [=, at = at_](int round, Transfers* transfers) {
    if (round == 0) {
      for (int r : at->Peers()) {
        transfers->push_back(at->To(r, tensor.raw(), bytes));
        transfers->push_back(at->From(r, scratch.get() + at->SlotOf(r, bytes), bytes));
      }
      return true;
    }
    std::vector<const void*> inputs;
    for (int r = 0; r < at->size(); ++r) {
      inputs.push_back(r == at->rank ? tensor.raw() : scratch.get() + at->SlotOf(r, bytes));
    }
    ReduceInRankOrder(op, tensor.dtype(), inputs, {tensor.raw()}, tensor.size());
    return false;
  });
}

WorkPtr MpiProcessGroup::AllReduce(const Tensor& tensor, ReduceOp op) {
  CheckContiguous(*this, "all_reduce", tensor);
  if (tensor.bytes() <= kSmall || size() <= 2) return AllReduceDirect(tensor, op);
  int64_t width = runtime::DTypeSize(tensor.dtype());
  int64_t chunk = (tensor.size() + size() - 1) / size();
  auto begin = [chunk, total = tensor.size()](int r) { return std::min(total, r * chunk); };
  Scratch scratch = MakeScratch(chunk * width * (size() - 1));
  return StartCollective("all_reduce", [=, at = at_](int round, Transfers* transfers) {
    int64_t own = begin(at->rank), own_size = begin(at->rank + 1) - own;
    if (round == 0) {
      for (int r : at->Peers()) {
        int64_t first = begin(r), bytes = (begin(r + 1) - first) * width;
        transfers->push_back(at->To(r, At(tensor, first * width), bytes));
        transfers->push_back(
            at->From(r, scratch.get() + at->SlotOf(r, chunk * width), own_size * width));
      }
      return true;
    }
    if (round == 2) return false;
    std::vector<const void*> inputs;
    for (int r = 0; r < at->size(); ++r) {
      inputs.push_back(r == at->rank ? At(tensor, own * width)
                                     : scratch.get() + at->SlotOf(r, chunk * width));
    }
    ReduceInRankOrder(op, tensor.dtype(), inputs, {At(tensor, own * width)}, own_size);
    for (int r : at->Peers()) {
      int64_t first = begin(r), bytes = (begin(r + 1) - first) * width;
      transfers->push_back(at->To(r, At(tensor, own * width), own_size * width));
      transfers->push_back(at->From(r, At(tensor, first * width), bytes));
    }
    return true;
  });
}

WorkPtr MpiProcessGroup::ReduceScatter(const Tensor& input, const Tensor& output) {
  CheckReduceScatter(*this, input, output);
  int64_t bytes = output.bytes();
  Scratch scratch = MakeScratch(bytes * (size() - 1));
  return StartCollective("reduce_scatter", [=, at = at_](int round, Transfers* transfers) {
    if (round == 0) {
      for (int r : at->Peers()) {
        transfers->push_back(at->To(r, At(input, r * bytes), bytes));
        transfers->push_back(at->From(r, scratch.get() + at->SlotOf(r, bytes), bytes));
      }
      return true;
    }
    std::vector<const void*> inputs;
    for (int r = 0; r < at->size(); ++r) {
      inputs.push_back(r == at->rank ? At(input, r * bytes) : scratch.get() + at->SlotOf(r, bytes));
    }
    ReduceInRankOrder(ReduceOp::kSum, output.dtype(), inputs, {output.raw()}, output.size());
    return false;
  });
}

WorkPtr MpiProcessGroup::AllGather(const Tensor& input, const Tensor& output) {
  CheckAllGather(*this, input, output);
  int64_t bytes = input.bytes();
  return StartCollective("all_gather", [=, at = at_](int round, Transfers* transfers) {
    if (round == 1) return false;
    char* own = At(output, at->rank * bytes);
    if (bytes > 0 && own != input.raw()) std::memcpy(own, input.raw(), bytes);
    for (int r : at->Peers()) {
      transfers->push_back(at->To(r, input.raw(), bytes));
      transfers->push_back(at->From(r, At(output, r * bytes), bytes));
    }
    return true;
  });
}

WorkPtr MpiProcessGroup::AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows,
                                  const Tensor& recv, const std::vector<int64_t>& recv_rows) {
  CheckAllToAll(*this, send, send_rows, recv, recv_rows);
  Check<CommError>(send_rows[rank()] == recv_rows[rank()],
                   "[all_to_all] group {}: rank {} sends {} rows to itself, but expects {}", name_,
                   rank(), send_rows[rank()], recv_rows[rank()]);
  int64_t row = RowBytes(send);
  std::vector<int64_t> send_at(size()), recv_at(size());
  for (int r = 1; r < size(); ++r) {
    send_at[r] = send_at[r - 1] + send_rows[r - 1] * row;
    recv_at[r] = recv_at[r - 1] + recv_rows[r - 1] * row;
  }
  return StartCollective("all_to_all", [=, at = at_](int round, Transfers* transfers) {
    if (round == 1) return false;
    if (send_rows[at->rank] > 0) {
      std::memcpy(At(recv, recv_at[at->rank]), At(send, send_at[at->rank]),
                  send_rows[at->rank] * row);
    }
    for (int r : at->Peers()) {
      transfers->push_back(at->To(r, At(send, send_at[r]), send_rows[r] * row));
      transfers->push_back(at->From(r, At(recv, recv_at[r]), recv_rows[r] * row));
    }
    return true;
  });
}

WorkPtr MpiProcessGroup::Broadcast(const Tensor& tensor, int root) {
  CheckContiguous(*this, "broadcast", tensor);
  CheckPeer(*this, "broadcast", root);
  return StartCollective("broadcast", [=, at = at_](int round, Transfers* transfers) {
    if (round == 1) return false;
    if (at->rank != root) {
      transfers->push_back(at->From(root, tensor.raw(), tensor.bytes()));
      return true;
    }
    for (int r : at->Peers()) transfers->push_back(at->To(r, tensor.raw(), tensor.bytes()));
    return true;
  });
}

// Sent from a copy: the caller has its tensor back at once, however late the receiver comes.
WorkPtr MpiProcessGroup::Send(const Tensor& tensor, int peer, int tag) {
  CheckMessage(*this, "send", tensor, peer, tag, 1 << engine_->payload_bits());
  int64_t bytes = tensor.bytes();
  Scratch copy = MakeScratch(bytes);
  if (bytes > 0) std::memcpy(copy.get(), tensor.raw(), bytes);
  StartMessage(
      fmt::format("send to rank {}", peer), tag,
      [transfer = at_->To(peer, copy.get(), bytes), copy](int round, Transfers* transfers) {
        transfers->push_back(transfer);
        return round == 0;
      });
  return std::make_shared<FinishedWork>();
}

WorkPtr MpiProcessGroup::Receive(const Tensor& tensor, int peer, int tag) {
  CheckMessage(*this, "receive", tensor, peer, tag, 1 << engine_->payload_bits());
  return StartMessage("receive", tag,
                      [transfer = at_->From(peer, tensor.raw(), tensor.bytes()), tensor](
                          int round, Transfers* transfers) {
                        transfers->push_back(transfer);
                        return round == 0;
                      });
}

// The number: the highest that any rank here would give next, from which all count on. So two
// groups of one rank differ in number; those of one split, which share no rank, do not.
GroupPtr MpiProcessGroup::Split(int color, int key, const std::string& name) {
  std::vector<std::string> all =
      AllGatherBytes(fmt::format("{} {} {}", color, key, engine_->next_group));
  std::vector<std::pair<int, int>> members;  // key, rank
  int first = 0;
  for (int r = 0; r < size(); ++r) {
    int their_color = 0, their_key = 0, their_next = 0;
    std::sscanf(all[r].c_str(), "%d %d %d", &their_color, &their_key, &their_next);
    first = std::max(first, their_next);
    if (their_color == color) members.emplace_back(their_key, r);
  }
  engine_->next_group = first + 1;
  Check<CommError>(engine_->next_group <= engine_->max_groups(),
                   "[split] group {}: more than {} groups; keep groups rather than splitting anew",
                   name_, engine_->max_groups());
  if (color < 0) return nullptr;
  std::sort(members.begin(), members.end());
  std::vector<int> world_ranks;
  int new_rank = 0;
  for (auto [_, r] : members) {
    if (r == rank()) new_rank = static_cast<int>(world_ranks.size());
    world_ranks.push_back(at_->world_ranks[r]);
  }
  return std::make_shared<MpiProcessGroup>(engine_, name, first,
                                           Members{std::move(world_ranks), new_rank});
}

// Round 0: a page with the length and the beginning; round 1: the rest of what did not fit.
std::vector<std::string> MpiProcessGroup::AllGatherBytes(const std::string& bytes) {
  constexpr int64_t kPage = 1024, kRoom = kPage - static_cast<int64_t>(sizeof(int64_t));
  int64_t length = static_cast<int64_t>(bytes.size());
  Scratch pages = MakeScratch(kPage * size());
  auto page = [pages](int r) { return pages.get() + r * kPage; };
  std::memset(page(rank()), 0, kPage);
  std::memcpy(page(rank()), &length, sizeof length);
  std::memcpy(page(rank()) + sizeof length, bytes.data(), std::min(length, kRoom));
  auto out = std::make_shared<std::vector<std::string>>(size());
  (*out)[rank()] = bytes;
  WorkPtr work =
      StartCollective("all_gather_bytes", [=, at = at_](int round, Transfers* transfers) {
        for (int r : at->Peers()) {
          if (round == 0) {
            transfers->push_back(at->To(r, page(at->rank), kPage));
            transfers->push_back(at->From(r, page(r), kPage));
          } else if (round == 1) {
            int64_t theirs = 0;
            std::memcpy(&theirs, page(r), sizeof theirs);
            (*out)[r].resize(theirs);
            std::memcpy((*out)[r].data(), page(r) + sizeof theirs, std::min(theirs, kRoom));
            std::string& own = (*out)[at->rank];
            if (length > kRoom) transfers->push_back(at->To(r, own.data() + kRoom, length - kRoom));
            if (theirs > kRoom) {
              transfers->push_back(at->From(r, (*out)[r].data() + kRoom, theirs - kRoom));
            }
          }
        }
        return round < 2;
      });
  work->Wait();
  return std::move(*out);
}

int FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? 0 : std::atoi(value);
}

}  // namespace

GroupPtr MakeMpiGroup(GroupOptions options) {
  auto engine = std::make_shared<MpiEngine>(options);
  std::vector<int> ranks(engine->size());
  for (int r = 0; r < engine->size(); ++r) ranks[r] = r;
  int rank = engine->rank();
  return std::make_shared<MpiProcessGroup>(std::move(engine), "world", 0,
                                           Members{std::move(ranks), rank});
}

bool StartedByMpi() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) {
    return FromEnvironment("OMPI_COMM_WORLD_SIZE") > 1;
  }
  if (std::getenv("PMI_SIZE") != nullptr) return FromEnvironment("PMI_SIZE") > 1;
  return std::getenv("PMIX_RANK") != nullptr && FromEnvironment("SLURM_NTASKS") > 1;
}

}  // namespace hone::parallel
