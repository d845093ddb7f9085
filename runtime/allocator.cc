#include "runtime/allocator.h"

#include <sys/mman.h>

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "runtime/error.h"
#include "runtime/memory_counter.h"

namespace hone::runtime {

std::string_view MemoryCategoryName(MemoryCategory category) {
  static constexpr std::string_view kNames[kMemoryCategoryCount] = {
      "weights", "gradients", "optimizer", "activations", "kv_cache", "communication", "other"};
  return kNames[static_cast<int>(category)];
}

namespace {

constexpr int64_t kAlignment = 64, kLargePage = 2 << 20;

// Size classes: four a power of two, so that at most a fifth is lost to rounding.
int64_t SizeClass(int64_t bytes) {
  if (bytes <= 256) return 256;
  int64_t power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes - 1)));
  int64_t quarter = power / 4;
  return (bytes + quarter - 1) / quarter * quarter;
}

// Null when the system refuses. Large blocks lie on large pages where the system has them: what
// walks through many megabytes then loses no time in finding pages.
void* FromSystem(int64_t bytes) {
  const bool large = bytes >= kLargePage;
  void* ptr = nullptr;
  if (::posix_memalign(&ptr, large ? kLargePage : kAlignment, bytes) != 0) return nullptr;
  if (large) ::madvise(ptr, bytes, MADV_HUGEPAGE);
  return ptr;
}

class CpuAllocator : public Allocator {
 public:
  CpuAllocator() : Allocator(MakeStream(Device::Cpu())) {}
  ~CpuAllocator() override { ReleaseCached(); }
  Device device() const override { return Device::Cpu(); }

  void* Allocate(int64_t bytes, MemoryCategory category) override {
    int64_t rounded = SizeClass(bytes);
    std::lock_guard lock(mutex_);
    counter_.Add(bytes, category);
    auto& free = free_[rounded];
    if (!free.empty()) {
      void* ptr = free.back();
      free.pop_back();
      return ptr;
    }
    void* ptr = FromSystem(rounded);
    Check(ptr != nullptr, "[allocator] the system refused {} bytes for {}; this process has {}",
          bytes, MemoryCategoryName(category), DescribeUsage(counter_.usage()));
    counter_.Reserve(rounded);
    return ptr;
  }

  void Free(void* ptr, int64_t bytes, MemoryCategory category) override {
    std::lock_guard lock(mutex_);
    counter_.Remove(bytes, category);
    free_[SizeClass(bytes)].push_back(ptr);
  }

  MemoryUsage Usage() const override {
    std::lock_guard lock(mutex_);
    return counter_.usage();
  }

  void ResetPeaks() override {
    std::lock_guard lock(mutex_);
    counter_.ResetPeaks();
  }

  void ReleaseCached() override {
    std::lock_guard lock(mutex_);
    for (auto& [size, blocks] : free_) {
      for (void* ptr : blocks) std::free(ptr);
      counter_.Reserve(-size * static_cast<int64_t>(blocks.size()));
      blocks.clear();
    }
  }

 private:
  mutable std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> free_;  // by size class
  MemoryCounter counter_;
};

}  // namespace

std::string DescribeUsage(const MemoryUsage& usage) {
  constexpr double kMiB = 1 << 20;
  std::string text = fmt::format("{:.1f} MiB in use", static_cast<double>(usage.live_total) / kMiB);
  for (int c = 0; c < kMemoryCategoryCount; ++c) {
    if (usage.live[c] == 0) continue;
    text += fmt::format(", {} {:.1f}", MemoryCategoryName(static_cast<MemoryCategory>(c)),
                        static_cast<double>(usage.live[c]) / kMiB);
  }
  return text;
}

std::shared_ptr<Allocator> MakeAllocator(Device device) {
  if (!device.is_cpu()) return MakeCudaAllocator(device);
  return std::make_shared<CpuAllocator>();
}

}  // namespace hone::runtime
