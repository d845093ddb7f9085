#include "rl/rollout/weight_digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

// A partial digest is 128 bits as 32 hex digits: two sums modulo 2^64.
struct DigestSum {
  uint64_t low = 0, high = 0;
  std::string ToHex() const { return fmt::format("{:016x}{:016x}", high, low); }
};

void AddRows(const SlabTensor& s, DigestSum* sum) {
  int64_t rows = s.slab.extent.empty() ? 1 : s.slab.extent[0];
  if (rows == 0 || s.tensor.size() == 0) return;
  if (!s.tensor.device().is_cpu()) {
    static const std::shared_ptr<Allocator> host = runtime::MakeAllocator(Device::Cpu());
    Tensor copy(host, s.tensor.shape(), s.tensor.dtype(), MemoryCategory::kCommunication);
    CopyTo(s.tensor, copy);
    return AddRows({s.slab, copy}, sum);
  }
  Check<ShapeError>(s.tensor.contiguous(), "[digest] {} is not contiguous", s.slab.ToString());
  int64_t row_bytes = s.tensor.bytes() / rows;
  uint64_t seed = HashName(s.slab.name);
  for (size_t d = 1; d < s.slab.offset.size(); ++d) {
    seed = seed * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(s.slab.offset[d]);
  }
  uint64_t first = s.slab.offset.empty() ? 0 : static_cast<uint64_t>(s.slab.offset[0]);
  for (int64_t r = 0; r < rows; ++r) {
    XXH128_hash_t hash = XXH3_128bits_withSeed(
        static_cast<const char*>(s.tensor.raw()) + r * row_bytes, static_cast<size_t>(row_bytes),
        seed ^ (first + static_cast<uint64_t>(r)) * 0xD1342543DE82EF95);
    sum->low += hash.low64;
    sum->high += hash.high64;
  }
}

}  // namespace

std::string WeightDigest(const SlabIndex& slabs) {
  DigestSum sum;
  for (const SlabTensor& s : slabs) AddRows(s, &sum);
  return sum.ToHex();
}

std::string CombineDigests(const std::vector<std::string>& partial) {
  DigestSum sum;
  for (const std::string& hex : partial) {
    Check<CommError>(hex.size() == 32, "[digest] '{}' is not a digest", hex);
    sum.high += std::stoull(hex.substr(0, 16), nullptr, 16);
    sum.low += std::stoull(hex.substr(16), nullptr, 16);
  }
  return sum.ToHex();
}

struct WeightDigester::Impl {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<SlabTensor> waiting;
  bool ended = false;
  std::exception_ptr error;
  DigestSum sum;
  std::thread thread{[this] { Run(); }};  // last: it uses the others

  void Run() {
    for (;;) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [this] { return ended || !waiting.empty(); });
      if (waiting.empty()) return;
      SlabTensor next = std::move(waiting.front());
      waiting.pop_front();
      lock.unlock();
      try {
        AddRows(next, &sum);
      } catch (...) {
        error = std::current_exception();
        return;
      }
    }
  }

  void End() {
    {
      std::lock_guard lock(mutex);
      ended = true;
    }
    changed.notify_all();
    if (thread.joinable()) thread.join();
  }
};

WeightDigester::WeightDigester() : impl_(std::make_unique<Impl>()) {}

WeightDigester::~WeightDigester() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->waiting.clear();
  }
  impl_->End();
}

void WeightDigester::Add(SlabTensor tensor) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->waiting.push_back(std::move(tensor));
  }
  impl_->changed.notify_all();
}

std::string WeightDigester::Finish() {
  impl_->End();
  if (impl_->error) std::rethrow_exception(impl_->error);
  return impl_->sum.ToHex();
}

}  // namespace hone::rl
