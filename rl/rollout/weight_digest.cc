#include "rl/rollout/weight_digest.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/digest/digest.h"
#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

using kernels::RowDigest;

std::string ToHex(const RowDigest& sum) { return fmt::format("{:016x}{:016x}", sum.high, sum.low); }

kernels::DigestInput InputOf(const SlabTensor& s) {
  Check<ShapeError>(s.tensor.contiguous(), "[digest] {} is not contiguous", s.slab.ToString());
  const bool scalar = s.slab.extent.empty();
  uint64_t seed = HashName(s.slab.name);
  for (size_t d = 1; d < s.slab.offset.size(); ++d) {
    seed = seed * 0x9E3779B97F4A7C15 + static_cast<uint64_t>(s.slab.offset[d]);
  }
  return {s.tensor, scalar ? 1 : s.slab.extent[0], seed,
          scalar ? 0 : static_cast<uint64_t>(s.slab.offset[0])};
}

}  // namespace

std::string WeightDigest(const SlabIndex& slabs) {
  WeightDigester digester;
  for (const SlabTensor& s : slabs) digester.Add(s);
  return digester.Finish();
}

std::string CombineDigests(const std::vector<std::string>& partial) {
  RowDigest sum;
  for (const std::string& hex : partial) {
    Check<CommError>(hex.size() == 32, "[digest] '{}' is not a digest", hex);
    sum += {std::stoull(hex.substr(16), nullptr, 16), std::stoull(hex.substr(0, 16), nullptr, 16)};
  }
  return ToHex(sum);
}

struct WeightDigester::Impl {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<SlabTensor> waiting;
  bool ended = false;
  std::exception_ptr error;
  Context host;
  RowDigest sum;
  std::vector<kernels::DigestInput> on_device;
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
        sum += kernels::DigestRows(host, {InputOf(next)});
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
  if (!tensor.tensor.device().is_cpu()) {
    impl_->on_device.push_back(InputOf(tensor));
    return;
  }
  {
    std::lock_guard lock(impl_->mutex);
    impl_->waiting.push_back(std::move(tensor));
  }
  impl_->changed.notify_all();
}

std::string WeightDigester::Finish() {
  impl_->End();
  if (impl_->error) std::rethrow_exception(impl_->error);
  if (!impl_->on_device.empty()) {
    Context device(impl_->on_device[0].tensor.device());
    impl_->sum += kernels::DigestRows(device, impl_->on_device);
  }
  return ToHex(impl_->sum);
}

}  // namespace hone::rl
