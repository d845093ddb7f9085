#include "tests/cuda_emulation/arena.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "tests/cuda_emulation/emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

namespace hone::cuda_emulation {
namespace {

constexpr int64_t kReserved = int64_t{64} << 30;  // addresses, not memory
constexpr int64_t kAlign = 512;
constexpr int64_t kPage = 4096;
constexpr char kUnwritten = -1;  // NaN in f32, f64 and bf16

const char* arena_begin = nullptr;
struct sigaction previous_action;

// Says why the program ends, then lets it end as it would have.
void OnSegmentationFault(int signal, siginfo_t* info, void*) {
  auto* at = static_cast<const char*>(info->si_addr);
  if (at >= arena_begin && at < arena_begin + kReserved) {
    constexpr char kMessage[] = "host access to emulated device memory\n";
    [[maybe_unused]] auto written = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
  }
  sigaction(signal, &previous_action, nullptr);
}

int64_t RoundUp(int64_t bytes) { return (bytes + 2 * kAlign - 1) / kAlign * kAlign; }  // and a gap
int64_t WholePages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

Arena::Arena() {
  void* memory =
      mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(memory);
  arena_begin = base_;
  struct sigaction action = {};
  action.sa_sigaction = OnSegmentationFault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &previous_action);
}

void* Arena::Allocate(int64_t bytes) {
  int64_t rounded = RoundUp(bytes);
  if (used_ + rounded > settings().memory_bytes) return nullptr;
  int64_t at = top_;
  if (auto it = free_.find(rounded); it != free_.end()) {
    at = it->second;
    free_.erase(it);
  } else {
    top_ += rounded;
  }
  used_ += rounded;
  live_[at] = bytes;
  new_.push_back(at);
  if (open_ > 0) FillNew();
  return base_ + at;
}

void* Arena::AllocateShared(int64_t bytes) {
  Mapping mapping{-1, WholePages(RoundUp(bytes))};
  if (used_ + mapping.bytes > settings().memory_bytes) return nullptr;
  mapping.file = memfd_create("emulated-device", MFD_CLOEXEC);
  if (mapping.file < 0 || ftruncate(mapping.file, mapping.bytes) != 0) throw std::bad_alloc();
  int64_t at = Map(mapping);
  used_ += mapping.bytes;
  live_[at] = bytes;
  new_.push_back(at);
  if (open_ > 0) FillNew();
  return base_ + at;
}

int64_t Arena::Map(const Mapping& mapping) {
  int64_t at = WholePages(top_);
  int protection = accessible_ ? PROT_READ | PROT_WRITE : PROT_NONE;
  void* memory =
      mmap(base_ + at, mapping.bytes, protection, MAP_SHARED | MAP_FIXED, mapping.file, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  top_ = at + mapping.bytes;
  mapped_[at] = mapping;
  return at;
}

// The addresses are not used again.
void Arena::Unmap(int64_t at) {
  const Mapping mapping = mapped_.at(at);
  mmap(base_ + at, mapping.bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  close(mapping.file);
  mapped_.erase(at);
  accessible_ = false;  // not all of it any more
  if (open_ > 0) FillNew();
}

bool Arena::FileOf(const void* ptr, File* file) const {
  auto it = mapped_.find(static_cast<const char*>(ptr) - base_);
  if (it == mapped_.end() || !live_.contains(it->first)) return false;
  *file = {getpid(), it->second.file, it->second.bytes};
  return true;
}

void* Arena::Adopt(const File& theirs) {
  const std::string path =
      "/proc/" + std::to_string(theirs.process) + "/fd/" + std::to_string(theirs.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return nullptr;
  flock(file, LOCK_SH);  // as long as it is open here, or this process lives
  return base_ + Map({file, theirs.bytes});
}

void Arena::Return(void* ptr) { Unmap(static_cast<char*>(ptr) - base_); }

bool Arena::OpenElsewhere(const void* ptr) const {
  auto it = mapped_.find(static_cast<const char*>(ptr) - base_);
  return it != mapped_.end() && flock(it->second.file, LOCK_EX | LOCK_NB) != 0;
}

bool Arena::Free(void* ptr) {
  int64_t at = static_cast<char*>(ptr) - base_;
  auto it = live_.find(at);
  if (it == live_.end()) std::abort();  // freed twice, or never allocated
  int64_t rounded = RoundUp(it->second);
  Open();
  ASAN_UNPOISON_MEMORY_REGION(base_ + at, rounded);
  char* end = base_ + at + rounded;
  bool gap_intact =
      std::all_of(base_ + at + it->second, end, [](char c) { return c == kUnwritten; });
  std::memset(base_ + at, kUnwritten, rounded);
  ASAN_POISON_MEMORY_REGION(base_ + at, rounded);
  Close();
  live_.erase(it);
  if (auto shared = mapped_.find(at); shared != mapped_.end()) {
    used_ -= shared->second.bytes;
    Unmap(at);
  } else {
    used_ -= rounded;
    free_.emplace(rounded, at);
  }
  return gap_intact;
}

bool Arena::Holds(const void* ptr) const {
  auto* at = static_cast<const char*>(ptr);
  return at >= base_ && at < base_ + kReserved;
}

bool Arena::Inside(const void* ptr, int64_t bytes) const {
  int64_t at = static_cast<const char*>(ptr) - base_;
  for (const auto& [begin, mapping] : mapped_) {  // another process knows how long they are
    if (at >= begin && at + bytes <= begin + mapping.bytes && !live_.contains(begin)) return true;
  }
  auto it = live_.upper_bound(at);
  if (it == live_.begin()) return false;
  --it;
  return at + bytes <= it->first + it->second;
}

void Arena::Protect(int protection) {
  mprotect(base_, (top_ + kPage - 1) / kPage * kPage, protection);
}

void Arena::FillNew() {
  if (!accessible_ || !new_.empty()) Protect(PROT_READ | PROT_WRITE);  // top_ may have grown
  accessible_ = true;
  for (int64_t at : new_) {
    auto it = live_.find(at);
    if (it == live_.end()) continue;
    int64_t rounded = RoundUp(it->second);
    ASAN_UNPOISON_MEMORY_REGION(base_ + at, rounded);
    std::memset(base_ + at, kUnwritten, rounded);
    ASAN_POISON_MEMORY_REGION(base_ + at + it->second, rounded - it->second);
  }
  new_.clear();
}

void Arena::Open() {
  if (open_++ == 0) FillNew();
}

void Arena::Close() {
  if (--open_ > 0 || !settings().protect_memory) return;
  Protect(PROT_NONE);
  accessible_ = false;
}

}  // namespace hone::cuda_emulation
