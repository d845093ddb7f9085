// Weights in the form that a backend's products read fastest, kept by whoever runs the same weights
// many times over, as sampling does. They take as much memory again. Thread safe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "runtime/tensor.h"

namespace hone::runtime {

class PackedWeights {
 public:
  // From now on `weights`, and any matrix inside it, may be kept packed.
  void Register(const Tensor& weights);
  // The packed form of `matrix`, which `pack` makes at the first call; or an undefined tensor where
  // `matrix` is no weight but something that was computed.
  Tensor Get(const Tensor& matrix, const std::function<Tensor()>& pack);
  // Memory for a packed form of so many elements, for `pack`: the forms lie one behind the other in
  // the order in which they are made, which is the order in which they will be read.
  Tensor Room(const std::shared_ptr<Allocator>& allocator, int64_t elements, DType dtype);
  // Forgets the packed forms: to be called when weights changed.
  void Clear();

 private:
  std::mutex mutex_;
  std::map<const char*, Tensor> weights_;  // registered, by where they begin
  std::map<std::tuple<const void*, int64_t, int64_t>, Tensor> packed_;  // by place, rows, columns
  Tensor block_;                                                        // what Room cuts from
  int64_t used_ = 0, given_ = 0;  // elements: of block_, of all blocks
};

}  // namespace hone::runtime
