#include "launcher/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "runtime/error.h"

namespace hone::launcher {
namespace {

// Between fork and exec only calls that are safe there.
[[noreturn]] void BecomeChild(int output, char* const* argv, pid_t launcher) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != launcher) _exit(1);  // it died before the line above
  dup2(output, 1);
  dup2(output, 2);
  int null = open("/dev/null", O_RDONLY);
  dup2(null, 0);
  execvp(argv[0], argv);
  const char* message = "cannot be started\n";
  (void)!write(2, argv[0], std::strlen(argv[0]));
  (void)!write(2, ": ", 2);
  (void)!write(2, message, std::strlen(message));
  _exit(127);
}

}  // namespace

std::string ThisProgram() {
  char path[4096];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  Check(n > 0, "[launcher] cannot find the path of this program: {}", std::strerror(errno));
  return std::string(path, static_cast<size_t>(n));
}

ChildProcess::ChildProcess(Options options) : options_(std::move(options)) {
  log_ = std::fopen(options_.log.c_str(), "ae");
  Check<IoError>(log_ != nullptr, "[launcher] cannot write {}: {}", options_.log,
                 std::strerror(errno));
  int ends[2];
  Check(pipe2(ends, O_CLOEXEC) == 0, "[launcher] no pipe: {}", std::strerror(errno));
  std::vector<char*> argv;
  for (std::string& word : options_.command) argv.push_back(word.data());
  argv.push_back(nullptr);
  for (auto& [name, value] : options_.environment) setenv(name.c_str(), value.c_str(), 1);
  pid_t launcher = getpid();
  pid_ = fork();
  Check(pid_ >= 0, "[launcher] cannot fork: {}", std::strerror(errno));
  if (pid_ == 0) BecomeChild(ends[1], argv.data(), launcher);
  setpgid(pid_, pid_);
  close(ends[1]);
  output_ = ends[0];
  fcntl(output_, F_SETFL, O_NONBLOCK);
}

ChildProcess::~ChildProcess() {
  if (!Ended()) {
    SignalGroup(SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Drain();
  if (output_ >= 0) close(output_);
  std::fclose(log_);
}

void ChildProcess::Drain() {
  char buffer[4096];
  while (output_ >= 0) {
    ssize_t n = read(output_, buffer, sizeof buffer);
    if (n > 0) {
      std::fwrite(buffer, 1, static_cast<size_t>(n), log_);
      std::fflush(log_);
      if (options_.echo) (void)!write(2, buffer, static_cast<size_t>(n));
    } else if (n == 0) {
      close(output_);
      output_ = -1;
    } else {
      return;
    }
  }
}

bool ChildProcess::Ended() {
  int status = 0;
  if (!ended_ && waitpid(pid_, &status, WNOHANG) == pid_) {
    ended_ = true;
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    SignalGroup(SIGKILL);  // whatever it left behind
  }
  return ended_;
}

void ChildProcess::Signal(int signal) const {
  if (!ended_) kill(pid_, signal);
}

void ChildProcess::SignalGroup(int signal) const { kill(-pid_, signal); }

std::vector<pid_t> ChildProcess::Children() const {
  std::vector<pid_t> children;
  std::ifstream list(fmt::format("/proc/{0}/task/{0}/children", pid_));
  for (pid_t child; list >> child;) {
    std::ifstream stat(fmt::format("/proc/{}/stat", child));
    std::string line;
    std::getline(stat, line);
    size_t name_end = line.rfind(')');  // the state follows; a name may hold anything
    bool alive = name_end != std::string::npos && line.compare(name_end, 3, ") Z") != 0;
    if (alive) children.push_back(child);
  }
  return children;
}

}  // namespace hone::launcher
