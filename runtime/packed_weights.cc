#include "runtime/packed_weights.h"

#include <algorithm>
#include <iterator>

namespace hone::runtime {

void PackedWeights::Register(const Tensor& weights) {
  std::lock_guard lock(mutex_);
  weights_[static_cast<const char*>(weights.raw())] = weights;
}

Tensor PackedWeights::Get(const Tensor& matrix, const std::function<Tensor()>& pack) {
  if (form_ != Form::kPanels) return {};
  return GetKept(matrix, false, [&] { return Kept{pack(), {}}; }).values;
}

PackedWeights::Kept PackedWeights::GetFp8(const Tensor& matrix, bool transposed,
                                          const std::function<Kept()>& quantize) {
  if (form_ != Form::kFp8) return {};
  return GetKept(matrix, transposed, quantize);
}

PackedWeights::Kept PackedWeights::GetKept(const Tensor& matrix, bool transposed,
                                           const std::function<Kept()>& make) {
  const char* begin = static_cast<const char*>(matrix.raw());
  const Key key{begin, matrix.rows(), matrix.cols(), transposed};
  {
    std::lock_guard lock(mutex_);
    auto after = weights_.upper_bound(begin);
    if (after == weights_.begin()) return {};
    auto inside = std::prev(after);
    if (begin >= inside->first + inside->second.bytes()) return {};
    if (auto it = packed_.find(key); it != packed_.end()) return it->second;
  }
  Kept packed = make();
  std::lock_guard lock(mutex_);
  return packed_.emplace(key, std::move(packed)).first->second;
}

Tensor PackedWeights::Room(const std::shared_ptr<Allocator>& allocator, int64_t elements,
                           DType dtype) {
  constexpr int64_t kAligned = 16, kBlock = 16 << 20;
  std::lock_guard lock(mutex_);
  const int64_t begin = (used_ + kAligned - 1) / kAligned * kAligned;
  if (block_.defined() && block_.dtype() == dtype && begin + elements <= block_.size()) {
    used_ = begin + elements;
    given_ += elements;
    return block_.Slice(begin, used_);
  }
  int64_t left = -given_;
  for (const auto& [place, weights] : weights_) left += weights.size();
  block_ = Tensor(allocator, {std::max(elements, std::min(left, kBlock))}, dtype,
                  MemoryCategory::kWeights);
  used_ = elements;
  given_ += elements;
  return block_.Slice(0, used_);
}

void PackedWeights::Clear() {
  std::lock_guard lock(mutex_);
  packed_.clear();
  block_ = {};
  used_ = given_ = 0;
}

}  // namespace hone::runtime
