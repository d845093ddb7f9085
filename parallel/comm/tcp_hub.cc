#include "parallel/comm/tcp_hub.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <exception>
#include <list>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/comm/list_text.h"
#include "parallel/comm/tcp_socket.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr uint64_t kMaxHello = 4096;               // bytes
constexpr uint64_t kMaxFrame = uint64_t{8} << 30;  // bytes
constexpr std::chrono::seconds kHelloPatience{5};

struct Connection {
  Socket socket;
  TcpClock::time_point since = TcpClock::now();
  std::string in, out;
  size_t written = 0;  // of `out`
  std::string group;   // "": no hello yet
  int rank = 0;
  bool closed = false;

  void Queue(FrameHeader header, const std::string& bytes) {
    header.length = bytes.size();
    out.append(reinterpret_cast<const char*>(&header), sizeof header);
    out += bytes;
  }
};

struct Group {
  struct Member {
    Connection* connection = nullptr;
    bool gone = false;
    std::deque<std::string> parts;  // of gathers to come
    TcpClock::time_point first_part;
    std::vector<std::pair<FrameHeader, std::string>> mail;  // from before it joined
  };
  std::vector<Member> members;
};

}  // namespace

struct TcpHub::Server {
  Server(int port, std::string token, std::chrono::milliseconds deadline)
      : token_(std::move(token)),
        deadline_(deadline),
        listener_(ListenOn(port)),
        wake_(eventfd(0, EFD_CLOEXEC)) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Server() {
    leaving_ = true;
    if (std::uncaught_exceptions() > 0) stop_ = true;
    uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(wake_.fd(), &one, sizeof one);
    thread_.join();
  }

  void Run();
  void Poll();
  void Accept();
  void Read(Connection& connection);
  bool TakeFrame(Connection& connection);  // false: no whole frame is there
  void Refuse(Connection& connection);
  void Join(Connection& connection, const std::string& bytes);
  void Take(Connection& connection, const FrameHeader& header, std::string bytes);
  void Gather(Group& group);
  void CheckDeadlines();
  void Fail(Group& group, const std::string& why);
  static void Write(Connection& connection);
  void Leave(Connection& connection);

  const std::string token_;
  const std::chrono::milliseconds deadline_;
  Socket listener_, wake_;
  std::list<Connection> connections_;
  std::map<std::string, Group> groups_;
  std::atomic<int> refused_ = 0;
  std::atomic<bool> leaving_ = false, stop_ = false;
  std::thread thread_;
};

void TcpHub::Server::Run() {
  TcpClock::time_point last = TcpClock::time_point::max();
  while (!stop_ && TcpClock::now() < last) {
    if (leaving_) {
      if (last == TcpClock::time_point::max()) last = TcpClock::now() + deadline_;
      bool joined = false;
      for (const Connection& c : connections_) joined |= !c.group.empty();
      if (!joined) return;
    }
    Poll();
    CheckDeadlines();
  }
}

void TcpHub::Server::Poll() {
  std::vector<pollfd> waiting = {{listener_.fd(), POLLIN, 0}, {wake_.fd(), POLLIN, 0}};
  for (const Connection& c : connections_) {
    short events = c.written < c.out.size() ? POLLIN | POLLOUT : POLLIN;
    waiting.push_back({c.socket.fd(), events, 0});
  }
  poll(waiting.data(), waiting.size(), 50);
  uint64_t count;
  if (waiting[1].revents) [[maybe_unused]]
    ssize_t n = read(wake_.fd(), &count, sizeof count);
  size_t i = 2;
  for (Connection& c : connections_) {
    if (waiting[i++].revents & (POLLIN | POLLHUP | POLLERR)) Read(c);
  }
  for (Connection& c : connections_) Write(c);
  for (auto c = connections_.begin(); c != connections_.end();) {
    bool late = c->group.empty() && TcpClock::now() - c->since > kHelloPatience;
    if (late && !c->closed) Refuse(*c);
    if (c->closed) Leave(*c);
    c = c->closed ? connections_.erase(c) : std::next(c);
  }
  if (waiting[0].revents) Accept();
}

void TcpHub::Server::Accept() {
  while (true) {
    Socket socket(accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.fd() < 0) return;
    connections_.emplace_back().socket = std::move(socket);
  }
}

void TcpHub::Server::Read(Connection& c) {
  char buffer[1 << 16];
  while (!c.closed) {
    ssize_t n = recv(c.socket.fd(), buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) {
      c.closed = true;
      return;
    }
    c.in.append(buffer, static_cast<size_t>(n));
    while (!c.closed && TakeFrame(c)) {
    }
  }
}

bool TcpHub::Server::TakeFrame(Connection& c) {
  FrameHeader header;
  if (c.in.size() < sizeof header) return false;
  std::memcpy(&header, c.in.data(), sizeof header);
  bool hello = c.group.empty();
  bool fits = hello ? header.type == FrameType::kHello && header.length <= kMaxHello
                    : header.length <= kMaxFrame;
  if (!fits) {
    Refuse(c);
    return false;
  }
  if (c.in.size() - sizeof header < header.length) return false;
  std::string bytes = c.in.substr(sizeof header, header.length);
  c.in.erase(0, sizeof header + header.length);
  if (hello) {
    Join(c, bytes);
  } else {
    Take(c, header, std::move(bytes));
  }
  return true;
}

void TcpHub::Server::Refuse(Connection& c) {
  c.closed = true;
  if (c.group.empty()) ++refused_;
}

void TcpHub::Server::Join(Connection& c, const std::string& bytes) {
  TcpHello hello;
  if (!TcpHello::Decode(bytes, &hello) || hello.token != token_) return Refuse(c);
  Group& group = groups_[hello.group];
  if (group.members.empty()) group.members.resize(hello.size);
  if (static_cast<int>(group.members.size()) != hello.size ||
      group.members[hello.rank].connection != nullptr || group.members[hello.rank].gone) {
    return Refuse(c);  // another size, or a rank that is there already
  }
  Group::Member& member = group.members[hello.rank];
  c.group = hello.group;
  c.rank = hello.rank;
  member.connection = &c;
  c.Queue({.type = FrameType::kHello}, "");
  for (auto& [header, mail] : member.mail) c.Queue(header, mail);
  member.mail.clear();
}

void TcpHub::Server::Take(Connection& c, const FrameHeader& header, std::string bytes) {
  Group& group = groups_.at(c.group);
  if (header.type == FrameType::kGather) {
    Group::Member& member = group.members[c.rank];
    if (member.parts.empty()) member.first_part = TcpClock::now();
    member.parts.push_back(std::move(bytes));
    return Gather(group);
  }
  bool message = header.type == FrameType::kMessage && header.peer >= 0 &&
                 header.peer < static_cast<int>(group.members.size());
  if (!message) return Refuse(c);
  FrameHeader onward{.type = FrameType::kMessage, .peer = c.rank, .tag = header.tag};
  Group::Member& to = group.members[header.peer];
  if (to.connection) {
    to.connection->Queue(onward, bytes);
  } else if (!to.gone) {
    to.mail.emplace_back(onward, std::move(bytes));
  }
}

void TcpHub::Server::Gather(Group& group) {
  std::vector<int> gone;
  bool all = true;
  for (size_t r = 0; r < group.members.size(); ++r) {
    if (!group.members[r].parts.empty()) continue;
    all = false;
    if (group.members[r].gone) gone.push_back(static_cast<int>(r));
  }
  if (!gone.empty()) return Fail(group, fmt::format("rank {} has left", ListText(gone)));
  if (!all) return;
  std::string parts;
  for (Group::Member& member : group.members) {
    AppendString(&parts, member.parts.front());
    member.parts.pop_front();
    member.first_part = TcpClock::now();
  }
  for (Group::Member& member : group.members) {
    if (member.connection) member.connection->Queue({.type = FrameType::kGathered}, parts);
  }
}

// Tells those who wait; each takes it as the end of the group.
void TcpHub::Server::Fail(Group& group, const std::string& why) {
  for (Group::Member& member : group.members) {
    if (!member.parts.empty() && member.connection) {
      member.connection->Queue({.type = FrameType::kFailure}, why);
    }
    member.parts.clear();
  }
}

void TcpHub::Server::CheckDeadlines() {
  for (auto& [name, group] : groups_) {
    bool late = false;
    std::vector<int> missing;
    for (size_t r = 0; r < group.members.size(); ++r) {
      const Group::Member& member = group.members[r];
      if (member.parts.empty()) {
        missing.push_back(static_cast<int>(r));
      } else {
        late |= TcpClock::now() - member.first_part > deadline_;
      }
    }
    if (!late) continue;
    std::string why =
        fmt::format("waited {:.1f} s for rank {}", std::chrono::duration<double>(deadline_).count(),
                    ListText(missing));
    if (refused_ > 0)
      why += fmt::format("; {} connections without the job's token", refused_.load());
    Fail(group, why);
  }
}

void TcpHub::Server::Write(Connection& c) {
  while (!c.closed && c.written < c.out.size()) {
    ssize_t n =
        send(c.socket.fd(), c.out.data() + c.written, c.out.size() - c.written, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n < 0) {
      c.closed = true;
      return;
    }
    c.written += static_cast<size_t>(n);
  }
  c.out.clear();
  c.written = 0;
}

void TcpHub::Server::Leave(Connection& c) {
  auto found = groups_.find(c.group);
  if (found == groups_.end()) return;
  Group& group = found->second;
  group.members[c.rank].connection = nullptr;
  group.members[c.rank].gone = true;
  bool all_gone = true, awaited = false;
  for (Group::Member& member : group.members) {
    all_gone &= member.gone;
    if (!member.connection) continue;
    awaited |= !member.parts.empty();
    member.connection->Queue({.type = FrameType::kGone, .peer = c.rank}, "");
  }
  if (awaited) Gather(group);
  if (all_gone) groups_.erase(found);
}

TcpHub::TcpHub(int port, std::string token, std::chrono::milliseconds deadline)
    : server_(std::make_unique<Server>(port, std::move(token), deadline)) {}
TcpHub::~TcpHub() = default;
int TcpHub::port() const { return PortOf(server_->listener_); }
int TcpHub::refused() const { return server_->refused_; }

}  // namespace hone::parallel
