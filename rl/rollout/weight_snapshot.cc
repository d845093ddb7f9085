#include "rl/rollout/weight_snapshot.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/error.h"

namespace hone::rl {

WeightSnapshot::WeightSnapshot(const SlabIndex& slabs, Device place,
                               const std::function<void(const SlabTensor&)>& copied)
    : place_(place) {
  for (const SlabTensor& s : slabs) size_ += s.tensor.bytes();
  if (!place.is_cpu()) on_device_ = runtime::MakeShareable(place, size());
  char* at = place.is_cpu() ? MapFile() : static_cast<char*>(on_device_.get());
  for (const SlabTensor& s : slabs) {
    Tensor copy(at, s.tensor.shape(), s.tensor.dtype(), place);
    CopyTo(s.tensor, copy);
    slabs_.push_back({s.slab, copy});
    if (copied) copied(slabs_.back());
    at += s.tensor.bytes();
  }
}

char* WeightSnapshot::MapFile() {
  file_ = memfd_create("hone-weights", MFD_CLOEXEC);
  Check<IoError>(file_ >= 0 && ftruncate(file_, size_) == 0,
                 "[weights] cannot reserve {} bytes of shared memory: {}", size_,
                 std::strerror(errno));
  void* mapping =
      mmap(nullptr, static_cast<size_t>(size_), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  Check<IoError>(mapping != MAP_FAILED, "[weights] cannot map {} bytes: {}", size_,
                 std::strerror(errno));
  base_ = static_cast<char*>(mapping);
  Check<IoError>(getrandom(base_, kNonceBytes, 0) == kNonceBytes, "[weights] no randomness: {}",
                 std::strerror(errno));
  return base_ + kNonceBytes;
}

void WeightSnapshot::Read(int64_t at, int64_t bytes, char* to) const {
  const char* from = static_cast<const char*>(on_device_.get()) + at;
  runtime::CopyBytes(to, Device::Cpu(), from, place_, bytes, nullptr);
}

WeightSnapshot::~WeightSnapshot() {
  if (base_) munmap(base_, static_cast<size_t>(size_));
  if (file_ >= 0) close(file_);
}

std::string WeightSnapshot::path() const { return fmt::format("/proc/{}/fd/{}", getpid(), file_); }

MappedSnapshot::MappedSnapshot(const std::string& path, const std::string& nonce, int64_t size)
    : size_(size + kNonceBytes) {
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return;
  struct stat info = {};
  bool fits = fstat(file, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == size_;
  void* mapping =
      fits ? mmap(nullptr, static_cast<size_t>(size_), PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  close(file);
  if (mapping == MAP_FAILED) return;
  base_ = static_cast<char*>(mapping);
  if (nonce.size() != kNonceBytes || std::memcmp(base_, nonce.data(), kNonceBytes) != 0) {
    munmap(base_, static_cast<size_t>(size_));
    base_ = nullptr;
  }
}

MappedSnapshot::~MappedSnapshot() {
  if (base_) munmap(base_, static_cast<size_t>(size_));
}

}  // namespace hone::rl
