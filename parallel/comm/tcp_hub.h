// Rank 0's end of a TCP group: everyone connects here, and here the parts of a gather meet.
//
// One thread serves all groups of a job. Each rank has a connection for each group it is in. The
// k-th gather frames of a group's ranks make its k-th gather; messages are handed on as they come.
// Who does not present the job's token in its first frame, and at once, is turned away, and
// nobody waits for it.
#pragma once

#include <chrono>
#include <memory>
#include <string>

namespace hone::parallel {

class TcpHub {
 public:
  // Listens at once; port 0 lets the system choose. `deadline`: how long a gather waits for its
  // last part.
  TcpHub(int port, std::string token, std::chrono::milliseconds deadline);
  // Waits for the other ranks to leave, at most as long as the deadline; not while an exception
  // unwinds.
  ~TcpHub();

  int port() const;
  int refused() const;  // connections turned away so far

 private:
  struct Server;
  std::unique_ptr<Server> server_;
};

}  // namespace hone::parallel
