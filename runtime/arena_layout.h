// Places in one block of memory, first fit: the same calls give the same places again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>

namespace hone::runtime {

class ArenaLayout {
 public:
  static constexpr int64_t kAlignment = 512;

  explicit ArenaLayout(int64_t capacity = INT64_MAX) : capacity_(capacity) {}

  // The offset of `bytes` bytes; −1 where there is no room.
  int64_t Take(int64_t bytes) {
    const int64_t size = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    int64_t begin = 0;
    for (const auto& [used, end] : used_) {
      if (used - begin >= size) break;
      begin = end;
    }
    if (size > capacity_ - begin) return -1;
    used_[begin] = begin + size;
    peak_ = std::max(peak_, begin + size);
    return begin;
  }
  void Give(int64_t offset) { used_.erase(offset); }

  // The same places taken, and room for as much as may come.
  ArenaLayout WithoutLimit() const {
    ArenaLayout layout = *this;
    layout.capacity_ = INT64_MAX;
    return layout;
  }

  bool empty() const { return used_.empty(); }
  int64_t capacity() const { return capacity_; }
  int64_t peak() const { return peak_; }  // what a block for these calls needs

 private:
  int64_t capacity_, peak_ = 0;
  std::map<int64_t, int64_t> used_;  // begin → end
};

}  // namespace hone::runtime
