// A child of the launcher: started by exec, its output prefixed and filed, gone when the launcher
// is.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <map>
#include <string>
#include <vector>

namespace hone::launcher {

class ChildProcess {
 public:
  struct Options {
    std::vector<std::string> command;                // command[0] is looked up in PATH
    std::map<std::string, std::string> environment;  // added to this process's
    std::string log;                                 // both outputs are appended here
    bool echo = false;                               // and shown on this process's stderr
  };
  // In a process group of its own, and killed by the kernel when this thread's process dies.
  explicit ChildProcess(Options options);
  ~ChildProcess();  // SIGKILL to its group if it still runs
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  int output() const { return output_; }  // readable end, for poll; −1 once closed
  void Drain();                           // reads what is there, without waiting
  // True once it has ended; then exit_code is its code, or 128 + signal.
  bool Ended();
  int exit_code() const { return exit_code_; }
  void Signal(int signal) const;       // to the process itself
  void SignalGroup(int signal) const;  // to it and its children
  // Processes that it started and that have not ended; they may be in groups of their own.
  std::vector<pid_t> Children() const;

 private:
  Options options_;
  pid_t pid_ = -1;
  int output_ = -1;
  bool ended_ = false;
  int exit_code_ = 0;
  std::FILE* log_ = nullptr;
};

// Path of the running program.
std::string ThisProgram();

}  // namespace hone::launcher
