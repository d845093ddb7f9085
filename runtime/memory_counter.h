// The bookkeeping that allocators share. Not thread safe.
#pragma once

#include <algorithm>

#include "runtime/allocator.h"

namespace hone::runtime {

class MemoryCounter {
 public:
  void Add(int64_t bytes, MemoryCategory category) {
    int64_t& live = usage_.live[static_cast<int>(category)];
    int64_t& peak = usage_.peak[static_cast<int>(category)];
    live += bytes;
    peak = std::max(peak, live);
    usage_.live_total += bytes;
    usage_.peak_total = std::max(usage_.peak_total, usage_.live_total);
  }
  void Remove(int64_t bytes, MemoryCategory category) {
    usage_.live[static_cast<int>(category)] -= bytes;
    usage_.live_total -= bytes;
  }
  void Reserve(int64_t bytes) { usage_.reserved += bytes; }  // negative: given back
  void ResetPeaks() {
    usage_.peak = usage_.live;
    usage_.peak_total = usage_.live_total;
  }
  const MemoryUsage& usage() const { return usage_; }

 private:
  MemoryUsage usage_;
};

// "12.3 MiB in use: weights 8.0, activations 4.3": what an out-of-memory message says.
std::string DescribeUsage(const MemoryUsage& usage);

}  // namespace hone::runtime
