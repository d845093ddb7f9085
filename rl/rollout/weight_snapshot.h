// Bytes of one weight version on one rank, where workers of the same user on the same machine can
// open them: in an anonymous shared file, or in memory of the learner's device. Nothing is left of
// either when the process dies.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/shareable_memory.h"
#include "runtime/slab.h"

namespace hone::rl {

inline constexpr int64_t kNonceBytes = 64;  // in front, so that tensors stay aligned

class WeightSnapshot {
 public:
  // Copies the slabs, from any device, to memory of `place`; `copied` (may be null) is shown each
  // one's copy in turn.
  explicit WeightSnapshot(const SlabIndex& slabs, Device place = {},
                          const std::function<void(const SlabTensor&)>& copied = nullptr);
  ~WeightSnapshot();
  WeightSnapshot(const WeightSnapshot&) = delete;
  WeightSnapshot& operator=(const WeightSnapshot&) = delete;

  const SlabIndex& slabs() const { return slabs_; }  // views, in order, without gaps
  int64_t size() const { return size_ - kNonceBytes; }
  Device place() const { return place_; }
  // In host memory:
  const char* bytes() const { return base_ + kNonceBytes; }
  std::string nonce() const { return std::string(base_, kNonceBytes); }
  std::string path() const;  // for a process on this host
  // On a device:
  void Read(int64_t at, int64_t bytes, char* to) const;  // to host memory
  std::string handle() const { return runtime::ShareableHandle(place_, on_device_.get()); }

 private:
  char* MapFile();  // of size_ bytes, with a nonce; returns what lies behind that

  Device place_;
  std::shared_ptr<void> on_device_;
  int file_ = -1;
  char* base_ = nullptr;
  int64_t size_ = kNonceBytes;
  SlabIndex slabs_;
};

// Maps a snapshot of another process; undefined bytes (null) when the path cannot be read here, or
// is not what `nonce` says.
class MappedSnapshot {
 public:
  MappedSnapshot(const std::string& path, const std::string& nonce, int64_t size);
  ~MappedSnapshot();
  MappedSnapshot(const MappedSnapshot&) = delete;
  MappedSnapshot& operator=(const MappedSnapshot&) = delete;
  const char* bytes() const { return base_ ? base_ + kNonceBytes : nullptr; }

 private:
  char* base_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace hone::rl
