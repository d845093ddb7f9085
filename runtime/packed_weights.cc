#include "runtime/packed_weights.h"

namespace hone::runtime {

Tensor PackedWeights::Get(const void* weights, const std::function<Tensor()>& pack) {
  {
    std::lock_guard lock(mutex_);
    if (auto it = packed_.find(weights); it != packed_.end()) return it->second;
  }
  Tensor packed = pack();
  std::lock_guard lock(mutex_);
  return packed_.emplace(weights, std::move(packed)).first->second;
}

void PackedWeights::Clear() {
  std::lock_guard lock(mutex_);
  packed_.clear();
}

}  // namespace hone::runtime
