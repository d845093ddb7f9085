// Sockets and the frames on them, for ranks that have no MPI between them.
//
// A frame is a header and `length` bytes, in the byte order of little-endian machines, which all
// that hone runs on are. Blocking calls take a deadline and throw TimeoutError past it; a
// connection that the other side closed is a CommError.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace hone::parallel {

using TcpClock = std::chrono::steady_clock;

enum class FrameType : uint32_t {
  kHello = 0x454e4f48,  // "HONE": the first that either side may send; payload: see TcpHello
  kGather,              // to the hub: this rank's part of its next gather
  kGathered,            // from the hub: every rank's part
  kMessage,             // to the hub: for `peer`; from the hub: from `peer`
  kGone,                // from the hub: `peer` has left the group
  kFailure,             // from the hub: why the oldest unanswered gather will not complete
};

struct FrameHeader {
  FrameType type = FrameType::kHello;
  int32_t peer = 0;
  int32_t tag = 0;
  uint32_t reserved = 0;
  uint64_t length = 0;
};
static_assert(sizeof(FrameHeader) == 24);

// Who joins which group: the payload of kHello.
struct TcpHello {
  std::string token;
  std::string group;
  int rank = 0, size = 0;

  std::string Encode() const;
  static bool Decode(const std::string& bytes, TcpHello* hello);
};

// Length-prefixed strings, one after the other; Unpack returns false on bytes that are no such
// list.
void AppendString(std::string* out, const std::string& value);
bool ReadString(const std::string& bytes, size_t* at, std::string* value);

// A file descriptor that closes itself.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Listens on every address of this machine; port 0 lets the system choose.
Socket ListenOn(int port);
int PortOf(const Socket& socket);
// Tries until somebody listens there.
Socket ConnectTo(const std::string& host, int port, TcpClock::time_point deadline);

// `place` begins the message of an error. The socket may be non-blocking or not.
void SendFrame(const Socket& socket, FrameHeader header, const std::string& bytes,
               TcpClock::time_point deadline, const std::string& place);
// False at an orderly or abrupt end of the connection. Waits without a deadline: the caller's
// thread ends when the socket is shut down.
bool ReceiveFrame(const Socket& socket, FrameHeader* header, std::string* bytes);

}  // namespace hone::parallel
