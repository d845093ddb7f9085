// One verifier helper, seen from its pool.
#pragma once

#include <sys/types.h>

#include <string>

namespace hone::rl {

// Not thread-safe. The kernel kills the process when the thread that started it ends.
class HelperProcess {
 public:
  HelperProcess() = default;
  ~HelperProcess() { Kill(); }
  HelperProcess(const HelperProcess&) = delete;
  HelperProcess& operator=(const HelperProcess&) = delete;

  // Runs `program verify-helper`. IoError when it cannot.
  void Start(const std::string& program);
  // Kills and reaps; without effect on one that does not run.
  void Kill();
  bool running() const { return pid_ > 0; }
  pid_t pid() const { return pid_; }
  int fd() const { return fd_; }

  // Neither waits. False when the process is gone.
  bool Read(std::string* buffer);      // appends what is there
  bool Write(std::string* remaining);  // erases what went out

 private:
  pid_t pid_ = -1;
  int fd_ = -1;  // this end of the socket pair that is the helper's stdin and stdout
};

}  // namespace hone::rl
