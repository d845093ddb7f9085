#include "rl/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "rl/rollout/own_certificate.h"
#include "runtime/error.h"
#include "runtime/json.h"

namespace hone::rl {
namespace {

using nlohmann::json;

constexpr size_t kSecretBytes = 32;

json ToJson(const StageRecord& s) {
  json evaluations = json::object();
  for (const auto& [suite, scores] : s.evaluations) evaluations[suite] = scores;
  return {{"name", s.name},
          {"kind", s.kind},
          {"from", s.from},
          {"state", s.state},
          {"step", s.step},
          {"steps", s.step},  // "steps": taken so far
          {"tokens", s.tokens},
          {"seconds", s.seconds},
          {"total_steps", s.steps},
          {"eval", evaluations},
          {"peak_bytes", s.peak_bytes}};
}

StageRecord FromJson(const json& j) {
  StageRecord s;
  j.at("name").get_to(s.name);
  j.at("kind").get_to(s.kind);
  j.at("from").get_to(s.from);
  j.at("state").get_to(s.state);
  j.at("step").get_to(s.step);
  j.at("total_steps").get_to(s.steps);
  j.at("tokens").get_to(s.tokens);
  j.at("seconds").get_to(s.seconds);
  s.peak_bytes = j.value("peak_bytes", decltype(s.peak_bytes)());
  for (const auto& [suite, scores] : j.at("eval").items()) {
    EvaluationScores& read = s.evaluations[suite];
    for (const auto& [score, value] : scores.items()) {  // JSON has no NaN: it is written as null
      read[score] = value.is_null() ? std::nan("") : value.get<double>();
    }
  }
  return s;
}

std::string ReadLine(int fd) {
  char buffer[128] = {};
  ssize_t n = pread(fd, buffer, sizeof buffer - 1, 0);
  return n > 0 ? std::string(buffer, strcspn(buffer, "\n")) : "";
}

int OpenLock(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  Check<IoError>(fd >= 0, "[run] cannot open {}: {}", path, std::strerror(errno));
  return fd;
}

// What a lock's file says to those who find it taken.
void WriteHolder(int fd, const std::string& path, const std::string& before) {
  char host[64] = {};
  gethostname(host, sizeof host - 1);
  const std::string text = fmt::format("{}pid {} on {}\n", before, getpid(), host);
  const bool ok = ftruncate(fd, 0) == 0 &&
                  pwrite(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
                  fsync(fd) == 0;
  Check<IoError>(ok, "[run] cannot write {}: {}", path, std::strerror(errno));
}

bool IsSecret(const std::string& text) {
  return text.size() == 2 * kSecretBytes &&
         text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// Synced, and for nobody else to read.
void WritePrivately(const std::string& path, const std::string& text) {
  unlink(path.c_str());
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  Check<IoError>(fd >= 0, "[run] cannot create {}: {}", path, std::strerror(errno));
  bool ok =
      write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  int error = errno;
  close(fd);
  Check<IoError>(ok, "[run] cannot write {}: {}", path, std::strerror(error));
}

}  // namespace

StageRecord* RunState::Find(const std::string& name) {
  for (StageRecord& s : stages) {
    if (s.name == name) return &s;
  }
  return nullptr;
}

RunDirectory::RunDirectory(FileSystem& fs, std::string root) : fs_(fs), root_(std::move(root)) {}

RunDirectory::~RunDirectory() {
  for (int fd : {lock_, supervisor_}) {
    if (fd >= 0) close(fd);
  }
}

void RunDirectory::Acquire(int seconds) {
  fs_.MakeDirs(root_);
  std::string path = root_ + "/lock";
  lock_ = OpenLock(path);
  auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    Check(std::chrono::steady_clock::now() < deadline,
          "[run] {} is being written by another run ({}); stop it, or choose another run directory",
          root_, ReadLine(lock_));
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  std::string line = ReadLine(lock_);
  incarnation_ = (line.empty() ? 0 : std::strtoll(line.c_str(), nullptr, 10)) + 1;
  WriteHolder(lock_, path, fmt::format("{} ", incarnation_));
}

void RunDirectory::Supervise() {
  fs_.MakeDirs(root_);
  const std::string path = root_ + "/supervisor";
  supervisor_ = OpenLock(path);
  Check<ConfigError>(flock(supervisor_, LOCK_EX | LOCK_NB) == 0,
                     "[run] {} is under way already ({}); stop that, or choose another run "
                     "directory",
                     root_, ReadLine(supervisor_));
  WriteHolder(supervisor_, path, "");
}

void RunDirectory::CheckFence() const {
  if (lock_ < 0) return;  // a reader
  std::string line = fs_.ReadAll(root_ + "/lock");
  int64_t now = std::strtoll(line.c_str(), nullptr, 10);
  Check(now == incarnation_,
        "[run] {} was taken over by incarnation {}; this is {}: nothing more is written", root_,
        now, incarnation_);
}

RunState RunDirectory::ReadState() const {
  RunState state;
  std::string path = root_ + "/state.json";
  if (!fs_.Exists(path)) return state;
  try {
    json recorded = runtime::ParseJson(fs_.ReadAll(path), path);
    for (const json& s : recorded.at("stages")) state.stages.push_back(FromJson(s));
  } catch (const json::exception& e) {
    throw DataError(fmt::format("[run] {} is not a state file: {}", path, e.what()));
  }
  return state;
}

void RunDirectory::WriteState(const RunState& state) const {
  CheckFence();
  json stages = json::array();
  for (const StageRecord& s : state.stages) stages.push_back(ToJson(s));
  fs_.WriteAtomically(root_ + "/summary.json", json{{"stages", stages}}.dump(1) + "\n");
  fs_.WriteAtomically(root_ + "/state.json",
                      json{{"incarnation", incarnation_}, {"stages", stages}}.dump(1) + "\n");
}

std::string RunDirectory::Secret(bool with_certificate) const {
  const std::string kept = fs_.Exists(secret()) ? fs_.ReadAll(secret()) : "";
  std::string hex = kept.substr(0, kept.find('\n'));
  if (IsSecret(hex) && HasOwnCertificate(secret()) == with_certificate) return kept;
  if (!IsSecret(hex)) {
    unsigned char bytes[kSecretBytes];
    Check<IoError>(getrandom(bytes, sizeof bytes, 0) == sizeof bytes, "[run] no randomness: {}",
                   std::strerror(errno));
    hex.clear();
    for (unsigned char b : bytes) hex += fmt::format("{:02x}", b);
  }
  if (with_certificate) hex += "\n" + MakeOwnCertificate();
  WritePrivately(secret() + ".tmp", hex);
  fs_.Rename(secret() + ".tmp", secret());
  return hex;
}

}  // namespace hone::rl
