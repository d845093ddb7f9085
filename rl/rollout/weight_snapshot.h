// Bytes of one weight version on one rank: in an anonymous shared file, so that workers of the same
// user on the same host can map them, and so that nothing is left when the process dies.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/slab.h"

namespace hone::rl {

inline constexpr int64_t kNonceBytes = 64;  // in front, so that tensors stay aligned

class WeightSnapshot {
 public:
  // Copies the slabs, from any device; `copied` (may be null) is shown each one's copy in turn.
  explicit WeightSnapshot(const SlabIndex& slabs,
                          const std::function<void(const SlabTensor&)>& copied = nullptr);
  ~WeightSnapshot();
  WeightSnapshot(const WeightSnapshot&) = delete;
  WeightSnapshot& operator=(const WeightSnapshot&) = delete;

  const SlabIndex& slabs() const { return slabs_; }  // views of the mapping, in order, without gaps
  const char* bytes() const { return base_ + kNonceBytes; }
  int64_t size() const { return size_ - kNonceBytes; }
  std::string nonce() const { return std::string(base_, kNonceBytes); }
  std::string path() const;  // for a process on this host

 private:
  int file_ = -1;
  char* base_ = nullptr;
  int64_t size_ = 0;
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
