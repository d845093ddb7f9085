// Runs build/hone as users do, alone or under mpirun, and waits no longer than it should take.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace hone::launcher {

using Words = std::vector<std::string>;

inline std::string HoneProgram() { return std::string(HONE_BINARY_DIR) + "/hone"; }

// `hone …`, as this many MPI ranks; 0: without mpirun.
inline Words HoneCommand(int ranks, const Words& arguments) {
  Words command;
  if (ranks > 0) {
    command = {"mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none",
               "-n",     std::to_string(ranks)};
  }
  command.push_back(HoneProgram());
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A program under way. What it and its children write goes to one file.
class Program {
 public:
  Program(Words command, std::string output) : output_(std::move(output)) {
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      setpgid(0, 0);
      const int file = open(output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      dup2(file, 1);
      dup2(file, 2);
      dup2(open("/dev/null", O_RDONLY), 0);
      execvp(argv[0], argv.data());
      _exit(127);
    }
  }
  ~Program() {
    if (!ended_) {
      kill(-pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }
  std::string output() const { return ReadFile(output_); }
  void Signal(int signal) const { kill(pid_, signal); }
  bool Ended() {
    int status = 0;
    if (!ended_ && waitpid(pid_, &status, WNOHANG) == pid_) {
      ended_ = true;
      code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return ended_;
  }
  // Its exit code. A test fails when it takes longer than `patience`.
  int Wait(std::chrono::seconds patience = std::chrono::seconds(60)) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (!Ended()) {
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "it hangs; so far it said:\n" << output();
        kill(-pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        ended_ = true;
        return code_ = 124;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return code_;
  }

  // Whether it came to this before its end. A test fails when neither comes within `patience`.
  bool Await(const std::function<bool()>& there,
             std::chrono::seconds patience = std::chrono::seconds(60)) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (!there()) {
      if (Ended()) return false;
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "what is waited for does not come; so far it said:\n" << output();
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }

 private:
  std::string output_;
  pid_t pid_ = -1;
  bool ended_ = false;
  int code_ = -1;
};

// The learner processes of the run in `dir`, by what they were started with.
inline std::vector<pid_t> LearnersOf(const std::string& dir) {
  std::vector<pid_t> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string words = ReadFile(entry.path().string() + "/cmdline");
    const std::string start = HoneProgram() + '\0' + "train" + '\0';
    if (words.starts_with(start) && words.find('\0' + dir + '\0') != std::string::npos) {
      found.push_back(std::stoi(name));
    }
  }
  return found;
}

}  // namespace hone::launcher
