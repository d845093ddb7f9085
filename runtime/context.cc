#include "runtime/context.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "runtime/error.h"

namespace hone::runtime {

const std::vector<std::string>& NumericsNames() {
  static const std::vector<std::string> names = {"batch_invariant", "fast", "fixed_point"};
  return names;
}

std::string_view NumericsName(Numerics numerics) {
  return NumericsNames()[static_cast<size_t>(numerics)];
}

Numerics NumericsFromName(std::string_view name) {
  const auto& names = NumericsNames();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    throw ConfigError(fmt::format("numerics: {} is none of {}", name, fmt::join(names, ", ")));
  }
  return static_cast<Numerics>(found - names.begin());
}

Context::Context(Device device, int threads, std::shared_ptr<Allocator> allocator)
    : device_(device),
      allocator_(allocator ? std::move(allocator) : MakeAllocator(device)),
      stream_(allocator_->stream()),
      pool_(std::make_shared<ThreadPool>(threads)) {}

Tensor Context::Empty(Shape shape, DType dtype, MemoryCategory category) {
  return Tensor(allocator_, std::move(shape), dtype, category);
}

Tensor Context::Zeros(Shape shape, DType dtype, MemoryCategory category) {
  Tensor t = Empty(std::move(shape), dtype, category);
  FillZero(t.raw(), device_, t.bytes(), stream_.get());
  return t;
}

Tensor Context::Clone(const Tensor& t, MemoryCategory category) {
  Tensor copy = Empty(t.shape(), t.dtype(), category);
  CopyTo(t, copy, stream_.get());
  return copy;
}

}  // namespace hone::runtime
