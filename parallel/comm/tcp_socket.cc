#include "parallel/comm/tcp_socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "runtime/error.h"

namespace hone::parallel {
namespace {

std::string ErrnoText() { return std::strerror(errno); }

void SendQuickly(int fd) {
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// Milliseconds to `deadline`, for poll.
int Left(TcpClock::time_point deadline) {
  auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - TcpClock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

struct Addresses {
  addrinfo* first = nullptr;
  ~Addresses() {
    if (first) freeaddrinfo(first);
  }
};

// One attempt at every address of the host; fd −1 when nobody listens.
Socket TryConnect(const std::string& host, int port, TcpClock::time_point deadline) {
  Addresses found;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found.first) != 0) {
    return Socket();
  }
  for (addrinfo* a = found.first; a != nullptr; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (socket.fd() < 0) continue;
    if (connect(socket.fd(), a->ai_addr, a->ai_addrlen) != 0 && errno != EINPROGRESS) continue;
    pollfd waiting{socket.fd(), POLLOUT, 0};
    int error = 0;
    socklen_t size = sizeof error;
    if (poll(&waiting, 1, Left(deadline)) <= 0) continue;
    getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) continue;
    SendQuickly(socket.fd());
    return socket;
  }
  return Socket();
}

bool ReceiveAll(int fd, char* data, size_t bytes) {
  while (bytes > 0) {
    ssize_t n = recv(fd, data, bytes, 0);
    if (n > 0) {
      data += n;
      bytes -= static_cast<size_t>(n);
    } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      pollfd waiting{fd, POLLIN, 0};
      poll(&waiting, 1, -1);
    } else if (n == 0 || errno != EINTR) {
      return false;
    }
  }
  return true;
}

}  // namespace

void AppendString(std::string* out, const std::string& value) {
  uint64_t size = value.size();
  out->append(reinterpret_cast<const char*>(&size), sizeof size);
  *out += value;
}

bool ReadString(const std::string& bytes, size_t* at, std::string* value) {
  uint64_t size;
  if (bytes.size() - *at < sizeof size) return false;
  std::memcpy(&size, bytes.data() + *at, sizeof size);
  *at += sizeof size;
  if (bytes.size() - *at < size) return false;
  value->assign(bytes, *at, size);
  *at += size;
  return true;
}

std::string TcpHello::Encode() const {
  std::string bytes;
  AppendString(&bytes, token);
  AppendString(&bytes, group);
  AppendString(&bytes, std::to_string(rank));
  AppendString(&bytes, std::to_string(size));
  return bytes;
}

bool TcpHello::Decode(const std::string& bytes, TcpHello* hello) {
  size_t at = 0;
  std::string rank, size;
  if (!ReadString(bytes, &at, &hello->token) || !ReadString(bytes, &at, &hello->group) ||
      !ReadString(bytes, &at, &rank) || !ReadString(bytes, &at, &size) || at != bytes.size()) {
    return false;
  }
  hello->rank = std::atoi(rank.c_str());
  hello->size = std::atoi(size.c_str());
  return hello->size > 0 && hello->rank >= 0 && hello->rank < hello->size;
}

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

Socket ListenOn(int port) {
  Socket socket(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  bool v6 = socket.fd() >= 0;
  if (!v6) socket = Socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  int on = 1, off = 0, result;
  setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (v6) {
    setsockopt(socket.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    sockaddr_in6 address{};
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(static_cast<uint16_t>(port));
    result = bind(socket.fd(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  } else {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    result = bind(socket.fd(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  }
  Check<CommError>(result == 0 && listen(socket.fd(), 1024) == 0,
                   "[tcp] cannot listen on port {}: {}; choose another with HONE_MASTER", port,
                   ErrnoText());
  return socket;
}

int PortOf(const Socket& socket) {
  sockaddr_in6 address{};
  socklen_t size = sizeof address;
  getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.sin6_port);  // at the same place in an IPv4 address
}

Socket ConnectTo(const std::string& host, int port, TcpClock::time_point deadline) {
  while (true) {
    Socket socket = TryConnect(host, port, deadline);
    if (socket.fd() >= 0) return socket;
    Check<TimeoutError>(TcpClock::now() < deadline,
                        "[tcp] nobody listens at {}:{}; is rank 0 running there?", host, port);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

void SendFrame(const Socket& socket, FrameHeader header, const std::string& bytes,
               TcpClock::time_point deadline, const std::string& place) {
  header.length = bytes.size();
  std::string frame(reinterpret_cast<const char*>(&header), sizeof header);
  frame += bytes;
  for (size_t sent = 0; sent < frame.size();) {
    ssize_t n =
        send(socket.fd(), frame.data() + sent, frame.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    Check<CommError>(errno == EAGAIN || errno == EWOULDBLOCK,
                     "{}: the connection to rank 0 is lost: {}", place, ErrnoText());
    pollfd waiting{socket.fd(), POLLOUT, 0};
    Check<TimeoutError>(poll(&waiting, 1, Left(deadline)) != 0, "{}: rank 0 does not take any more",
                        place);
  }
}

bool ReceiveFrame(const Socket& socket, FrameHeader* header, std::string* bytes) {
  if (!ReceiveAll(socket.fd(), reinterpret_cast<char*>(header), sizeof *header)) return false;
  bytes->resize(header->length);
  return ReceiveAll(socket.fd(), bytes->data(), bytes->size());
}

}  // namespace hone::parallel
