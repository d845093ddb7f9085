#include "runtime/packed_weights.h"

#include <iterator>

namespace hone::runtime {

void PackedWeights::Register(const Tensor& weights) {
  std::lock_guard lock(mutex_);
  weights_[static_cast<const char*>(weights.raw())] = weights;
}

Tensor PackedWeights::Get(const Tensor& matrix, const std::function<Tensor()>& pack) {
  const char* begin = static_cast<const char*>(matrix.raw());
  std::tuple key{static_cast<const void*>(begin), matrix.rows(), matrix.cols()};
  {
    std::lock_guard lock(mutex_);
    auto after = weights_.upper_bound(begin);
    if (after == weights_.begin()) return {};
    auto inside = std::prev(after);
    if (begin >= inside->first + inside->second.bytes()) return {};
    if (auto it = packed_.find(key); it != packed_.end()) return it->second;
  }
  Tensor packed = pack();
  std::lock_guard lock(mutex_);
  return packed_.emplace(key, std::move(packed)).first->second;
}

void PackedWeights::Clear() {
  std::lock_guard lock(mutex_);
  packed_.clear();
}

}  // namespace hone::runtime
