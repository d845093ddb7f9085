#include "tests/cuda_emulation/arena.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

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
  used_ -= rounded;
  free_.emplace(rounded, at);
  live_.erase(it);
  return gap_intact;
}

bool Arena::Holds(const void* ptr) const {
  auto* at = static_cast<const char*>(ptr);
  return at >= base_ && at < base_ + kReserved;
}

bool Arena::Inside(const void* ptr, int64_t bytes) const {
  int64_t at = static_cast<const char*>(ptr) - base_;
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
