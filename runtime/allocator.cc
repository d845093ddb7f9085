#include "runtime/allocator.h"

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "runtime/error.h"

namespace hone::runtime {

std::string_view MemoryCategoryName(MemoryCategory category) {
  static constexpr std::string_view kNames[kMemoryCategoryCount] = {
      "weights", "gradients", "optimizer", "activations", "kv_cache", "communication", "other"};
  return kNames[static_cast<int>(category)];
}

namespace {

constexpr int64_t kAlignment = 64;

// Size classes: four a power of two, so that at most a fifth is lost to rounding.
int64_t SizeClass(int64_t bytes) {
  if (bytes <= 256) return 256;
  int64_t power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes - 1)));
  int64_t quarter = power / 4;
  return (bytes + quarter - 1) / quarter * quarter;
}

class CpuAllocator : public Allocator {
 public:
  ~CpuAllocator() override { ReleaseCached(); }
  Device device() const override { return Device::Cpu(); }

  void* Allocate(int64_t bytes, MemoryCategory category) override {
    int64_t rounded = SizeClass(bytes);
    std::lock_guard lock(mutex_);
    Count(bytes, category);
    auto& free = free_[rounded];
    if (!free.empty()) {
      void* ptr = free.back();
      free.pop_back();
      return ptr;
    }
    void* ptr = std::aligned_alloc(kAlignment, (rounded + kAlignment - 1) / kAlignment * kAlignment);
    Check(ptr != nullptr, "[allocator] the system refused {} bytes for {}; {} are in use", bytes,
          MemoryCategoryName(category), usage_.live_total);
    usage_.reserved += rounded;
    return ptr;
  }

  void Free(void* ptr, int64_t bytes, MemoryCategory category) override {
    std::lock_guard lock(mutex_);
    usage_.live[static_cast<int>(category)] -= bytes;
    usage_.live_total -= bytes;
    free_[SizeClass(bytes)].push_back(ptr);
  }

  MemoryUsage Usage() const override {
    std::lock_guard lock(mutex_);
    return usage_;
  }

  void ResetPeaks() override {
    std::lock_guard lock(mutex_);
    usage_.peak = usage_.live;
    usage_.peak_total = usage_.live_total;
  }

  void ReleaseCached() override {
    std::lock_guard lock(mutex_);
    for (auto& [size, blocks] : free_) {
      for (void* ptr : blocks) std::free(ptr);
      usage_.reserved -= size * static_cast<int64_t>(blocks.size());
      blocks.clear();
    }
  }

 private:
  void Count(int64_t bytes, MemoryCategory category) {
    int64_t& live = usage_.live[static_cast<int>(category)];
    int64_t& peak = usage_.peak[static_cast<int>(category)];
    live += bytes;
    peak = std::max(peak, live);
    usage_.live_total += bytes;
    usage_.peak_total = std::max(usage_.peak_total, usage_.live_total);
  }

  mutable std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> free_;  // by size class
  MemoryUsage usage_;
};

}  // namespace

std::shared_ptr<Allocator> MakeAllocator(Device device) {
  Check<DeviceError>(device.is_cpu(), "[allocator] this build of hone has no CUDA; {} is not available",
                     device.ToString());
  return std::make_shared<CpuAllocator>();
}

}  // namespace hone::runtime
