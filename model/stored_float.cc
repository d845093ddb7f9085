#include "model/stored_float.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace hone::model {
namespace {

// Calls fn(T*) with the element type of `out`.
template <class Fn>
void WithData(const Tensor& out, const char* what, const Fn& fn) {
  CheckShape(out.contiguous() && out.device().is_cpu(), "[{}] into a tensor of shape {} in strides",
             what, runtime::ShapeToString(out.shape()));
  switch (out.dtype()) {
    case DType::kF32:
      return fn(out.data<float>());
    case DType::kBF16:
      return fn(out.data<BF16>());
    case DType::kF64:
      return fn(out.data<double>());
    default:
      throw ShapeError(
          fmt::format("[{}] cannot be read as {}", what, runtime::DTypeName(out.dtype())));
  }
}

const std::array<float, 256>& F8Table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values;
    for (int b = 0; b < 256; ++b) values[b] = F8E4M3ToFloat(static_cast<uint8_t>(b));
    return values;
  }();
  return table;
}

// Sign, exponent and mantissa of any small format, without its special values.
float Compose(bool negative, int exponent, int mantissa, int mantissa_bits, int bias) {
  const float magnitude = exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits)
                              : std::ldexp(static_cast<float>(mantissa + (1 << mantissa_bits)),
                                           exponent - bias - mantissa_bits);
  return negative ? -magnitude : magnitude;
}

}  // namespace

float HalfToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const bool negative = bits >> 15;
  if (exponent == 31) {
    const float special =
        mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    return negative ? -special : special;
  }
  return Compose(negative, exponent, mantissa, 10, 15);
}

float F8E4M3ToFloat(uint8_t bits) {
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return Compose(bits >> 7, bits >> 3 & 15, bits & 7, 3, 7);
}

Shape ScaleShape(const Shape& matrix) {
  Shape blocks;
  for (int64_t n : matrix) blocks.push_back((n + kScaleBlock - 1) / kScaleBlock);
  return blocks;
}

void DecodeHalf(const uint16_t* from, const Tensor& out) {
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (size_t b = 0; b < values.size(); ++b) values[b] = HalfToFloat(static_cast<uint16_t>(b));
    return values;
  }();
  WithData(out, "f16", [&]<class T>(T* to) {
    for (int64_t i = 0; i < out.size(); ++i) to[i] = static_cast<T>(table[from[i]]);
  });
}

void DecodeScaledF8(const uint8_t* from, int64_t first_row, const Tensor& scale,
                    const Tensor& out_RC) {
  const std::array<float, 256>& table = F8Table();
  const int64_t columns = out_RC.cols();
  WithData(out_RC, "fp8", [&]<class T>(T* to) {
    for (int64_t r = 0; r < out_RC.rows(); ++r) {
      const float* factors = scale.row<float>((first_row + r) / kScaleBlock);
      for (int64_t begin = 0; begin < columns; begin += kScaleBlock) {
        const float factor = *factors++;
        const int64_t end = std::min(columns, begin + kScaleBlock);
        for (int64_t c = begin; c < end; ++c) to[c] = static_cast<T>(table[from[c]] * factor);
      }
      from += columns;
      to += columns;
    }
  });
}

}  // namespace hone::model
