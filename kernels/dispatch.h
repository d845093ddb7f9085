// How op.cc reaches its backend: one switch on the device, one on the dtype; and the checks that
// every op makes of its tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>

#include "runtime/context.h"

namespace hone::kernels {

// The raw rows of a tensor, without a dtype check at each access.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  explicit Rows(const Tensor& t) : data(t.data<T>()), stride(t.row_stride()) {}
  T* operator[](int64_t r) const { return data + r * stride; }
};

// Calls fn(T{}) with the element type of a float dtype.
template <class Fn>
decltype(auto) SwitchFloat(std::string_view op, DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF32:
      return fn(float{});
    case DType::kBF16:
      return fn(BF16{});
    case DType::kF64:
      return fn(double{});
    default:
      throw ShapeError(
          fmt::format("[{}] dtype {} is not one of f32, bf16, f64", op, runtime::DTypeName(dtype)));
  }
}

// The dtype of statistics, results of reductions and weight gradients: f64 for f64, otherwise f32.
inline DType AccDType(DType dtype) { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }

// For ops that have no CUDA form yet: a CUDA tensor is a DeviceError that names the op.
inline void RequireCpu(std::string_view op, const Context& ctx) {
  if (!ctx.device().is_cpu()) [[unlikely]] {
    throw DeviceError(fmt::format("[{}] runs on the cpu only; this context is on {}", op,
                                  ctx.device().ToString()));
  }
}

// `t` is defined, on the context's device and of this dtype; `name` is what the message calls it.
inline void CheckTensor(std::string_view op, std::string_view name, const Context& ctx,
                        const Tensor& t, DType dtype) {
  CheckShape(t.defined(), "[{}] {} is undefined", op, name);
  CheckShape(t.dtype() == dtype, "[{}] {} has dtype {}, expected {}", op, name,
             runtime::DTypeName(t.dtype()), runtime::DTypeName(dtype));
  if (!(t.device() == ctx.device())) [[unlikely]] {  // strings are made only for the message
    throw ShapeError(fmt::format("[{}] {} is on {}, the context on {}", op, name,
                                 t.device().ToString(), ctx.device().ToString()));
  }
}
inline void CheckTensor(std::string_view op, std::string_view name, const Context& ctx,
                        const Tensor& t, DType dtype, const runtime::Shape& shape) {
  CheckTensor(op, name, ctx, t, dtype);
  if (t.shape() != shape) [[unlikely]] {
    throw ShapeError(fmt::format("[{}] {} has shape {}, expected {}", op, name,
                                 runtime::ShapeToString(t.shape()), runtime::ShapeToString(shape)));
  }
}

// Rows a thread should take at least, so that a range is worth a wake-up.
inline int64_t RowGrain(int64_t cols, int64_t elements = 16384) {
  return std::max<int64_t>(1, elements / std::max<int64_t>(1, cols));
}

}  // namespace hone::kernels
