#include "rl/reward/helper_process.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string_view>
#include <vector>

#include "runtime/error.h"

namespace hone::rl {
namespace {

// What a program needs to start and to report a sanitizer's findings. Anything else may be a
// secret.
constexpr std::string_view kKeptVariables[] = {
    "PATH",         "LD_LIBRARY_PATH", "LANG",         "LC_ALL",      "TZ",
    "ASAN_OPTIONS", "UBSAN_OPTIONS",   "LSAN_OPTIONS", "TSAN_OPTIONS"};

std::vector<char*> HarmlessEnvironment() {
  std::vector<char*> kept;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    std::string_view text(*entry);
    std::string_view name = text.substr(0, text.find('='));
    for (std::string_view k : kKeptVariables) {
      if (name == k) kept.push_back(*entry);
    }
  }
  kept.push_back(nullptr);
  return kept;
}

// posix_spawn's two bundles of settings.
class SpawnSettings {
 public:
  explicit SpawnSettings(int helper_end) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_adddup2(&actions_, helper_end, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions_, helper_end, STDOUT_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions_, STDERR_FILENO + 1);
    // Signals as a fresh program has them, whatever this thread blocks.
    posix_spawnattr_init(&attributes_);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnSettings() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  posix_spawn_file_actions_t* actions() { return &actions_; }
  posix_spawnattr_t* attributes() { return &attributes_; }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

}  // namespace

void HelperProcess::Start(const std::string& program) {
  Kill();
  int ends[2];
  int error = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0 ? 0 : errno;
  Check<IoError>(error == 0, "[verifier] no socket pair for a helper: {}", strerror(error));
  std::string path = program.empty() ? "/proc/self/exe" : program;
  std::string name = "hone", command = "verify-helper";
  char* argv[] = {name.data(), command.data(), nullptr};
  SpawnSettings settings(ends[1]);
  error = posix_spawn(&pid_, path.c_str(), settings.actions(), settings.attributes(), argv,
                      HarmlessEnvironment().data());
  close(ends[1]);
  if (error != 0) {
    pid_ = -1;
    close(ends[0]);
    throw IoError(fmt::format("[verifier] helper '{}' does not start: {}", path, strerror(error)));
  }
  fd_ = ends[0];
}

void HelperProcess::Kill() {
  if (pid_ <= 0) return;
  close(fd_);
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  fd_ = -1;
}

bool HelperProcess::Read(std::string* buffer) {
  char chunk[1 << 16];
  for (int chunks = 0; chunks < 64;
       ++chunks) {  // a flood must not keep the pool from its deadlines
    ssize_t n = recv(fd_, chunk, sizeof chunk, MSG_DONTWAIT);
    if (n > 0) {
      buffer->append(chunk, static_cast<size_t>(n));
    } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      return true;
    } else if (n == 0 || errno != EINTR) {
      return false;
    }
  }
  return true;
}

bool HelperProcess::Write(std::string* remaining) {
  size_t sent = 0;
  bool alive = true;
  while (sent < remaining->size()) {
    ssize_t n =
        send(fd_, remaining->data() + sent, remaining->size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      break;
    } else if (errno != EINTR) {
      alive = false;
      break;
    }
  }
  remaining->erase(0, sent);
  return alive;
}

}  // namespace hone::rl
