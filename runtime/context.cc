#include "runtime/context.h"

namespace hone::runtime {

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
