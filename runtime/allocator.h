// A caching allocator with live and peak bytes by category.
//
// Freed blocks are kept by size class and handed out again, so that a training step in steady state
// asks the system for nothing. Thread safe.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "runtime/device.h"

namespace hone::runtime {

enum class MemoryCategory : uint8_t {
  kWeights,
  kGradients,
  kOptimizer,
  kActivations,
  kKvCache,
  kCommunication,
  kOther,
};
inline constexpr int kMemoryCategoryCount = 7;
std::string_view MemoryCategoryName(MemoryCategory category);

// Bytes as asked for, not as rounded up to a size class.
struct MemoryUsage {
  std::array<int64_t, kMemoryCategoryCount> live{};
  std::array<int64_t, kMemoryCategoryCount> peak{};  // of each category by itself
  int64_t live_total = 0;
  int64_t peak_total = 0;  // of the sum
  int64_t reserved = 0;    // taken from the system, cached blocks included
};

class Allocator {
 public:
  explicit Allocator(std::unique_ptr<Stream> stream) : stream_(std::move(stream)) {}
  virtual ~Allocator() = default;
  virtual Device device() const = 0;
  // 64-byte aligned on the CPU, 512 on CUDA; never null; uninitialised. Zero bytes are allowed.
  virtual void* Allocate(int64_t bytes, MemoryCategory category) = 0;
  virtual void Free(void* ptr, int64_t bytes, MemoryCategory category) = 0;
  virtual MemoryUsage Usage() const = 0;
  virtual void ResetPeaks() = 0;
  virtual void ReleaseCached() = 0;

  // Memory is handed out and taken back in this stream's order. Work of another stream may use it
  // behind an event of this stream, and this stream waits for an event of that work before the
  // memory is freed.
  const std::shared_ptr<Stream>& stream() const { return stream_; }

 private:
  std::shared_ptr<Stream> stream_;
};

// Shared, because tensors outlive the context that made them.
std::shared_ptr<Allocator> MakeAllocator(Device device);
std::shared_ptr<Allocator> MakeCudaAllocator(Device device);  // where MakeAllocator gets them

}  // namespace hone::runtime

namespace hone {
using runtime::Allocator;
using runtime::MemoryCategory;
}  // namespace hone
