// Element types. bf16 is stored and moved; arithmetic on it is done in f32.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace hone::runtime {

enum class DType : uint8_t { kF32, kBF16, kF64, kI32, kI64, kU8, kF8E4M3 };

int64_t DTypeSize(DType dtype);                // bytes an element
std::string_view DTypeName(DType dtype);       // "f32", "bf16", …
DType DTypeFromName(std::string_view name);    // ConfigError on an unknown name

// bfloat16: the upper half of an f32; conversion rounds to nearest even and keeps NaN.
struct BF16 {
  uint16_t bits = 0;

  BF16() = default;
  explicit BF16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((u >> 16) | 0x40u);
    } else {
      bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const {
    uint32_t u = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &u, sizeof value);
    return value;
  }
};

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<BF16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kU8;
};

// The type arithmetic on T is done in.
template <class T>
struct AccOf {
  using type = T;
};
template <>
struct AccOf<BF16> {
  using type = float;
};
template <class T>
using Acc = typename AccOf<T>::type;

}  // namespace hone::runtime

namespace hone {
using runtime::Acc;
using runtime::BF16;
using runtime::DType;
using runtime::DTypeOf;
}  // namespace hone
