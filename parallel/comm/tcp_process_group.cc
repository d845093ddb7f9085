// A process group on one connection to rank 0's hub a rank. Every collective is a gather of bytes,
// answered in order, and a sum or copy at Wait; messages are sorted by peer and tag as they arrive.
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "parallel/comm/reduction.h"
#include "parallel/comm/tcp_bootstrap.h"
#include "parallel/comm/tcp_hub.h"
#include "parallel/comm/tcp_socket.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int kTags = 1 << 16;
// The hub notices who is late, and says whom; a rank that hears nothing at all gives up after.
constexpr std::chrono::seconds kHubsTurn{5};

using Parts = std::vector<std::string>;

// One rank's connection for one group, and the thread that reads it.
class TcpLink {
 public:
  TcpLink(const TcpOptions& options, const std::string& group, std::chrono::milliseconds deadline)
      : deadline_(deadline),
        where_(fmt::format("{}:{}", options.host, options.port)),
        socket_(ConnectTo(options.host, options.port, TcpClock::now() + deadline)) {
    TcpHello hello{options.token, group, options.rank, options.size};
    SendFrame(socket_, {.type = FrameType::kHello}, hello.Encode(), TcpClock::now() + deadline_,
              "[tcp]");
    reader_ = std::thread([this] { Read(); });
  }
  ~TcpLink() {
    shutdown(socket_.fd(), SHUT_RDWR);
    reader_.join();
  }

  // Returns when rank 0 has taken this rank in.
  void AwaitWelcome(const std::string& place) {
    std::unique_lock lock(mutex_);
    bool heard = arrived_.wait_for(lock, deadline_ + kHubsTurn,
                                   [&] { return welcome_ || !failure_.empty(); });
    if (!welcome_) Throw(heard, place, 0);
  }

  // The number of the gather.
  int64_t BeginGather(const std::string& bytes, const std::string& place) {
    std::lock_guard order(sending_);
    SendFrame(socket_, {.type = FrameType::kGather}, bytes, TcpClock::now() + deadline_, place);
    return begun_++;
  }
  bool GatherDone(int64_t number) {
    std::lock_guard lock(mutex_);
    return gathered_.contains(number) || !failure_.empty();
  }
  Parts WaitGather(int64_t number, const std::string& place) {
    std::unique_lock lock(mutex_);
    bool heard = arrived_.wait_for(lock, deadline_ + kHubsTurn,
                                   [&] { return gathered_.contains(number) || !failure_.empty(); });
    auto found = gathered_.find(number);
    if (found == gathered_.end()) Throw(heard, place, 0);
    Parts parts = std::move(found->second);
    gathered_.erase(found);
    return parts;
  }

  void SendMessage(int peer, int tag, const std::string& bytes, const std::string& place) {
    std::lock_guard order(sending_);
    SendFrame(socket_, {.type = FrameType::kMessage, .peer = peer, .tag = tag}, bytes,
              TcpClock::now() + deadline_, place);
  }
  // Messages with one tag are handed out in the order in which they are asked for.
  int64_t Ask(int peer, int tag) {
    std::lock_guard lock(mutex_);
    return asked_[{peer, tag}]++;
  }
  bool MessageDone(int peer, int tag, int64_t number) {
    std::lock_guard lock(mutex_);
    return Find(peer, tag, number) != nullptr || !failure_.empty() || gone_.contains(peer);
  }
  std::string WaitMessage(int peer, int tag, int64_t number, const std::string& place) {
    std::unique_lock lock(mutex_);
    std::string* message = nullptr;
    bool heard = arrived_.wait_for(lock, deadline_, [&] {
      message = Find(peer, tag, number);
      return message != nullptr || !failure_.empty() || gone_.contains(peer);
    });
    if (message == nullptr && heard && failure_.empty()) {
      throw CommError(fmt::format("{}: rank {} has left", place, peer));
    }
    if (message == nullptr) Throw(heard, place, peer);
    std::string bytes = std::move(*message);
    mail_.erase({peer, tag, number});
    return bytes;
  }

 private:
  void Read() {
    FrameHeader header;
    std::string bytes;
    while (ReceiveFrame(socket_, &header, &bytes)) {
      std::lock_guard lock(mutex_);
      if (header.type == FrameType::kHello) welcome_ = true;
      if (header.type == FrameType::kGathered) gathered_[answered_++] = Split(bytes);
      if (header.type == FrameType::kMessage) {
        int64_t number = delivered_[{header.peer, header.tag}]++;
        mail_[{header.peer, header.tag, number}] = std::move(bytes);
      }
      if (header.type == FrameType::kGone) gone_.insert(header.peer);
      if (header.type == FrameType::kFailure) failure_ = bytes;
      arrived_.notify_all();
    }
    std::lock_guard lock(mutex_);
    if (failure_.empty()) {
      failure_ = welcome_ ? "the connection to rank 0 is lost"
                          : "rank 0 at " + where_ +
                                " turned this rank away: another job's token, "
                                "another size, or a rank that is there already";
    }
    arrived_.notify_all();
  }
  static Parts Split(const std::string& bytes) {
    Parts parts;
    std::string part;
    for (size_t at = 0; at < bytes.size() && ReadString(bytes, &at, &part);) parts.push_back(part);
    return parts;
  }
  std::string* Find(int peer, int tag, int64_t number) {
    auto found = mail_.find({peer, tag, number});
    return found == mail_.end() ? nullptr : &found->second;
  }
  [[noreturn]] void Throw(bool heard, const std::string& place, int silent_peer) {
    std::string why =
        !failure_.empty()
            ? failure_
            : fmt::format("waited {:.1f} s for rank {}",
                          std::chrono::duration<double>(deadline_).count(), silent_peer);
    bool late = !heard || why.starts_with("waited");
    std::string message = fmt::format("{}: {}", place, why);
    if (late) throw TimeoutError(message);
    throw CommError(message);
  }

  const std::chrono::milliseconds deadline_;
  const std::string where_;
  Socket socket_;
  std::mutex sending_;
  int64_t begun_ = 0;

  std::mutex mutex_;
  std::condition_variable arrived_;
  bool welcome_ = false;
  int64_t answered_ = 0;
  std::map<int64_t, Parts> gathered_;
  std::map<std::pair<int, int>, int64_t> asked_, delivered_;
  std::map<std::tuple<int, int, int64_t>, std::string> mail_;
  std::set<int> gone_;
  std::string failure_;
  std::thread reader_;
};

using LinkPtr = std::shared_ptr<TcpLink>;

// Waits once; what it finds out is kept for the next time.
class TcpWork : public Work {
 public:
  TcpWork(std::function<bool()> ready, std::function<void()> finish)
      : ready_(std::move(ready)), finish_(std::move(finish)) {}
  bool Done() override { return finished_ || ready_(); }
  void Wait() override {
    std::call_once(once_, [this] {
      try {
        finish_();
      } catch (...) {
        error_ = std::current_exception();
      }
      finished_ = true;
    });
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::function<bool()> ready_;
  std::function<void()> finish_;
  std::once_flag once_;
  std::atomic<bool> finished_ = false;
  std::exception_ptr error_;
};

std::string Bytes(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.raw()), static_cast<size_t>(tensor.bytes())};
}

void Fill(const Tensor& tensor, int64_t at, std::string_view bytes) {
  if (!bytes.empty())
    std::memcpy(static_cast<char*>(tensor.raw()) + at, bytes.data(), bytes.size());
}

class TcpProcessGroup : public ProcessGroup {
 public:
  TcpProcessGroup(std::shared_ptr<TcpHub> hub, TcpOptions options, std::string id, std::string name,
                  std::chrono::milliseconds deadline)
      : hub_(std::move(hub)),
        options_(std::move(options)),
        id_(std::move(id)),
        name_(std::move(name)),
        deadline_(deadline),
        link_(std::make_shared<TcpLink>(options_, id_, deadline)) {
    link_->AwaitWelcome(Place("join"));
  }

  const std::string& name() const override { return name_; }
  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  WorkPtr AllReduce(const Tensor& tensor, ReduceOp op) override {
    CheckContiguous(*this, "all_reduce", tensor);
    std::string place = Place("all_reduce");
    return Gather("all_reduce", Bytes(tensor), [tensor, op, place](const Parts& parts) {
      std::vector<const void*> inputs = Equal(parts, tensor.bytes(), place);
      ReduceInRankOrder(op, tensor.dtype(), inputs, {tensor.raw()}, tensor.size());
    });
  }

  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) override {
    CheckReduceScatter(*this, input, output);
    std::string place = Place("reduce_scatter");
    return Gather("reduce_scatter", Bytes(input),
                  [output, total = input.bytes(), r = rank(), place](const Parts& parts) {
                    std::vector<const void*> inputs = Equal(parts, total, place);
                    for (const void*& in : inputs) {
                      in = static_cast<const char*>(in) + r * output.bytes();
                    }
                    ReduceInRankOrder(ReduceOp::kSum, output.dtype(), inputs, {output.raw()},
                                      output.size());
                  });
  }

  WorkPtr AllGather(const Tensor& input, const Tensor& output) override {
    CheckAllGather(*this, input, output);
    std::string place = Place("all_gather");
    return Gather("all_gather", Bytes(input),
                  [output, bytes = input.bytes(), place](const Parts& parts) {
                    Equal(parts, bytes, place);
                    for (size_t r = 0; r < parts.size(); ++r) Fill(output, r * bytes, parts[r]);
                  });
  }

  WorkPtr AllToAll(const Tensor& send, const std::vector<int64_t>& send_rows, const Tensor& recv,
                   const std::vector<int64_t>& recv_rows) override {
    CheckAllToAll(*this, send, send_rows, recv, recv_rows);
    std::string bytes;  // for each rank its length and rows
    std::string all = Bytes(send);
    size_t at = 0;
    for (int64_t rows : send_rows) {
      AppendString(&bytes, all.substr(at, rows * RowBytes(send)));
      at += rows * RowBytes(send);
    }
    return Gather("all_to_all", bytes,
                  [recv, recv_rows, row = RowBytes(recv), r = rank(),
                   place = Place("all_to_all")](const Parts& parts) {
                    int64_t at = 0;
                    for (size_t from = 0; from < parts.size(); ++from) {
                      size_t position = 0;
                      std::string rows;
                      for (int to = 0; to <= r; ++to) ReadString(parts[from], &position, &rows);
                      int64_t expected = recv_rows[from] * row;
                      Check<CommError>(static_cast<int64_t>(rows.size()) == expected,
                                       "{}: {} bytes came from rank {}, expected {}", place,
                                       rows.size(), from, expected);
                      Fill(recv, at, rows);
                      at += expected;
                    }
                  });
  }

  WorkPtr Broadcast(const Tensor& tensor, int root) override {
    CheckContiguous(*this, "broadcast", tensor);
    CheckPeer(*this, "broadcast", root);
    return Gather("broadcast", rank() == root ? Bytes(tensor) : "",
                  [tensor, root, place = Place("broadcast")](const Parts& parts) {
                    Check<CommError>(static_cast<int64_t>(parts[root].size()) == tensor.bytes(),
                                     "{}: {} bytes came from rank {}, expected {}", place,
                                     parts[root].size(), root, tensor.bytes());
                    Fill(tensor, 0, parts[root]);
                  });
  }

  WorkPtr Send(const Tensor& tensor, int peer, int tag) override {
    CheckMessage(*this, "send", tensor, peer, tag, kTags);
    link_->SendMessage(peer, tag, Bytes(tensor), Place("send"));
    return std::make_shared<TcpWork>([] { return true; }, [] {});
  }

  WorkPtr Receive(const Tensor& tensor, int peer, int tag) override {
    CheckMessage(*this, "receive", tensor, peer, tag, kTags);
    int64_t number = link_->Ask(peer, tag);
    std::string place = fmt::format("{}, tag {}", Place("receive"), tag);
    return std::make_shared<TcpWork>(
        [=, link = link_] { return link->MessageDone(peer, tag, number); },
        [=, link = link_] {
          std::string bytes = link->WaitMessage(peer, tag, number, place);
          Check<CommError>(static_cast<int64_t>(bytes.size()) == tensor.bytes(),
                           "{}: {} bytes came from rank {}, expected {}", place, bytes.size(), peer,
                           tensor.bytes());
          Fill(tensor, 0, bytes);
        });
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
    TcpOptions options = options_;
    options.size = static_cast<int>(members.size());
    auto mine = std::find_if(members.begin(), members.end(),
                             [&](const auto& member) { return member.second == rank(); });
    options.rank = static_cast<int>(mine - members.begin());
    return std::make_shared<TcpProcessGroup>(
        hub_, std::move(options), fmt::format("{}/{}.{}", id_, split, color), name, deadline_);
  }

  std::vector<std::string> AllGatherBytes(const std::string& bytes) override {
    Parts all;
    Gather("all_gather_bytes", bytes, [&all](const Parts& parts) { all = parts; })->Wait();
    return all;
  }

 private:
  std::string Place(const char* op) const {
    return fmt::format("[{}] group {}, rank {} of {}", op, name_, rank(), size());
  }
  // A gather carries its operation's name, so that ranks that disagree are told so.
  WorkPtr Gather(const char* op, const std::string& bytes, std::function<void(const Parts&)> use) {
    std::string part;
    AppendString(&part, op);
    int64_t number = link_->BeginGather(part + bytes, Place(op));
    return std::make_shared<TcpWork>(
        [link = link_, number] { return link->GatherDone(number); },
        [link = link_, number, use = std::move(use), place = Place(op), name = std::string(op)] {
          Parts parts = link->WaitGather(number, place);
          for (size_t r = 0; r < parts.size(); ++r) {
            size_t at = 0;
            std::string theirs;
            ReadString(parts[r], &at, &theirs);
            Check<CommError>(theirs == name, "{}: rank {} is at {}", place, r, theirs);
            parts[r].erase(0, at);
          }
          use(parts);
        });
  }
  static std::vector<const void*> Equal(const Parts& parts, int64_t bytes,
                                        const std::string& place) {
    std::vector<const void*> data;
    for (size_t r = 0; r < parts.size(); ++r) {
      Check<CommError>(static_cast<int64_t>(parts[r].size()) == bytes,
                       "{}: rank {} brought {} bytes, this one {}", place, r, parts[r].size(),
                       bytes);
      data.push_back(parts[r].data());
    }
    return data;
  }

  std::shared_ptr<TcpHub> hub_;  // on rank 0; goes after the link
  TcpOptions options_;
  std::string id_, name_;
  std::chrono::milliseconds deadline_;
  int splits_ = 0;
  LinkPtr link_;
};

}  // namespace

GroupPtr MakeTcpGroup(const TcpOptions& options, GroupOptions group_options) {
  Check<ConfigError>(options.size >= 1 && options.rank >= 0 && options.rank < options.size,
                     "[tcp] rank {} of {}", options.rank, options.size);
  if (options.size == 1) return MakeSingleGroup();
  TcpOptions own = options;
  std::shared_ptr<TcpHub> hub;
  if (own.rank == 0) {
    hub = std::make_shared<TcpHub>(own.port, own.token, group_options.deadline);
    own.host = "localhost";
  }
  auto group = std::make_shared<TcpProcessGroup>(std::move(hub), std::move(own), "world", "world",
                                                 group_options.deadline);
  group->Barrier();
  return group;
}

}  // namespace hone::parallel
