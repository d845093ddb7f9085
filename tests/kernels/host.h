// How tests reach tensors that may lie on a device: through copies on the host.
#pragma once

#include "runtime/context.h"
#include "tests/device.h"

namespace hone {

inline Tensor HostTensor(Shape shape, DType dtype) {
  static const std::shared_ptr<Allocator> allocator = runtime::MakeAllocator(Device::Cpu());
  return Tensor(allocator, std::move(shape), dtype, MemoryCategory::kOther);
}

// A contiguous copy, of another dtype if wanted.
inline Tensor OnHost(const Tensor& t) {
  Tensor host = HostTensor(t.shape(), t.dtype());
  CopyTo(t, host);
  return host;
}
inline Tensor OnHost(const Tensor& t, DType dtype) {
  Tensor converted = HostTensor(t.shape(), dtype);
  CopyTo(OnHost(t), converted);
  return converted;
}
inline Tensor OnDevice(Context& ctx, const Tensor& host) {
  Tensor t = ctx.Empty(host.shape(), host.dtype());
  CopyTo(host, t);
  return t;
}

// One element of an f64 tensor.
inline double Peek(const Tensor& x, int64_t row, int64_t column) {
  double value = 0;
  runtime::CopyBytes(&value, Device::Cpu(), x.row<double>(row) + column, x.device(), sizeof value,
                     nullptr);
  return value;
}
inline void Poke(const Tensor& x, int64_t row, int64_t column, double value) {
  runtime::CopyBytes(x.row<double>(row) + column, x.device(), &value, Device::Cpu(), sizeof value,
                     nullptr);
}

}  // namespace hone
