// Elements of f32, f64 and bf16 in kernels, one at a time and 16 bytes at a time. Device code
// computes in Acc<T> and names types as the host does.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace hone::kernels::cuda {

__device__ __forceinline__ float Load(float value) { return value; }
__device__ __forceinline__ double Load(double value) { return value; }
__device__ __forceinline__ float Load(BF16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest even; the bits of BF16(float) on the host.
template <class T>
__device__ __forceinline__ T Store(Acc<T> value) {
  return value;
}
template <>
__device__ __forceinline__ BF16 Store<BF16>(float value) {
  uint32_t u = __float_as_uint(value);
  BF16 rounded;
  rounded.bits = (u & 0x7fffffffu) > 0x7f800000u
                     ? static_cast<uint16_t>((u >> 16) | 0x40u)
                     : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  return rounded;
}

// 16 bytes of neighbours, moved by one instruction. The address must be a multiple of 16.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};
template <class T>
__device__ __forceinline__ Pack<T> LoadPack(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}
template <class T>
__device__ __forceinline__ void StorePack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

// Whether the rows of all these tensors can be moved as Packs: the first element, the row stride
// and the number of columns are multiples of 16 bytes. Views often are not.
template <class... Tensors>
bool Packable(const Tensors&... t) {
  return ((reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 &&
           t.row_stride() * runtime::DTypeSize(t.dtype()) % 16 == 0 &&
           t.cols() * runtime::DTypeSize(t.dtype()) % 16 == 0) &&
          ...);
}

// The rows of a tensor, passed to kernels by value.
template <class T>
struct Rows {
  T* data;
  int64_t stride;  // in elements

  explicit Rows(const Tensor& t) : data(t.data<T>()), stride(t.row_stride()) {}
  __device__ __forceinline__ T* operator[](int64_t r) const { return data + r * stride; }
};

}  // namespace hone::kernels::cuda
