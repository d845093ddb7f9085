// Runs CUDA kernels on the CPU, for tests.
//
// The sources `*_cuda.cu` are compiled as C++ against the cuda_runtime.h of this folder. A thread
// of a block is a fiber: it runs alone until it waits at a barrier or in a warp intrinsic, or ends.
// Blocks run one after the other. Which thread goes next is `Settings::order`; a kernel whose
// result depends on it has a race. Reported as an error of the launch, with the kernel's file and
// line:
//   - a barrier or a warp intrinsic that some of its threads never reach (they ended, or wait
//     somewhere else);
//   - a shuffle that reads from a lane outside of its mask;
//   - writes behind the end of dynamic shared memory, and of an allocation (when it is freed);
//   - an exception out of a kernel.
// Device memory lies in an arena that the host cannot touch while no kernel and no copy runs: a
// host access ends the program as it would on a GPU. Memory that nobody wrote is full of NaN; under
// AddressSanitizer a kernel's access outside of an allocation is reported.
// One device operation runs at a time, whatever the number of host threads.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>

namespace hone::cuda_emulation {
struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
}  // namespace hone::cuda_emulation

// Of the running thread, under CUDA's names.
extern hone::cuda_emulation::Dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace hone::cuda_emulation {

enum class Order { kAscending, kDescending, kRandom };

struct Settings {
  Order order = Order::kAscending;  // of threads, and of blocks
  uint64_t seed = 1;                // of kRandom
  bool protect_memory = true;       // the host cannot touch the arena
  bool lazy_streams = false;        // work on a stream waits until somebody waits for it
  int devices = 1;
  int64_t memory_bytes = int64_t{4} << 30;  // of a device
};

// HONE_EMULATED_ORDER = ascending | descending | random:SEED, HONE_EMULATED_STREAMS = eager | lazy
// and HONE_EMULATED_DEVICES = N set them before the first use.
Settings& settings();

struct LaunchShape {
  Dim3 grid, block;
  int64_t shared_bytes = 0;
};

// Runs `thread` once for every thread of the grid. False if it failed; then `LastFailure` says why.
bool RunGrid(const LaunchShape& shape, const std::function<void()>& thread);
std::string LastFailure();

// For kernels: each is called by a running thread.
using Where = std::source_location;
void Barrier(const Where& where);
// Every lane of `mask` gives `bytes` ≤ kExchangeBytes bytes; afterwards `all` points to what the
// lanes gave, kExchangeBytes apart, and stays readable until the caller's next exchange.
inline constexpr int kExchangeBytes = 64;
const unsigned char* ExchangeBytes(unsigned mask, const void* value, int bytes, const Where& where);
[[noreturn]] void Fail(const std::string& message, const Where& where);
void* DynamicSharedMemory();

// What every lane of `mask` passed, by lane.
template <class T>
class Exchanged {
 public:
  Exchanged(unsigned mask, const T& value, const Where& where)
      : all_(ExchangeBytes(mask, &value, sizeof(T), where)) {
    static_assert(sizeof(T) <= kExchangeBytes);
  }
  T operator[](int lane) const {
    T value;
    std::memcpy(&value, all_ + lane * kExchangeBytes, sizeof(T));
    return value;
  }

 private:
  const unsigned char* all_;
};

}  // namespace hone::cuda_emulation
