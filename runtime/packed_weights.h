// Weights in the form that a backend's products read fastest, kept by whoever runs the same weights
// many times over, as sampling does. They take as much memory again. Thread safe.
#pragma once

#include <functional>
#include <mutex>
#include <unordered_map>

#include "runtime/tensor.h"

namespace hone::runtime {

class PackedWeights {
 public:
  // The packed form of the weights that begin at `weights`; `pack` makes it at the first call.
  Tensor Get(const void* weights, const std::function<Tensor()>& pack);
  // To be called when weights change or move.
  void Clear();

 private:
  std::mutex mutex_;
  std::unordered_map<const void*, Tensor> packed_;
};

}  // namespace hone::runtime
