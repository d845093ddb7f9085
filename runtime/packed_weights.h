// Weights in the form that products read, kept by whoever runs the same weights many times over:
// sampling, and the microbatches of a step. They take memory of their own. Thread safe.
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
  enum class Form : uint8_t {
    kPanels,  // what a backend reads fastest; the bits of the weights
    kFp8,     // kernels/fp8: values and scales of a matrix, and of its transpose
  };
  struct Kept {
    Tensor values, scale;  // scale: of fp8
  };
  explicit PackedWeights(Form form = Form::kPanels) : form_(form) {}

  // From now on `weights`, and any matrix inside it, may be kept packed.
  void Register(const Tensor& weights);
  // The packed form of `matrix`, which `pack` makes at the first call; or an undefined tensor where
  // `matrix` is no weight but something that was computed, or no panels are kept.
  Tensor Get(const Tensor& matrix, const std::function<Tensor()>& pack);
  // The same of fp8.
  Kept GetFp8(const Tensor& matrix, bool transposed, const std::function<Kept()>& quantize);
  // Memory for a packed form of so many elements, for `pack`: the forms lie one behind the other in
  // the order in which they are made, which is the order in which they will be read.
  Tensor Room(const std::shared_ptr<Allocator>& allocator, int64_t elements, DType dtype);
  // Forgets the packed forms: to be called when weights changed.
  void Clear();

 private:
  using Key = std::tuple<const void*, int64_t, int64_t, bool>;  // place, rows, columns, transposed
  Kept GetKept(const Tensor& matrix, bool transposed, const std::function<Kept()>& make);

  const Form form_;
  std::mutex mutex_;
  std::map<const char*, Tensor> weights_;  // registered, by where they begin
  std::map<Key, Kept> packed_;
  Tensor block_;                  // what Room cuts from
  int64_t used_ = 0, given_ = 0;  // elements: of block_, of all blocks
};

}  // namespace hone::runtime
