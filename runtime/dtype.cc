#include "runtime/dtype.h"

#include "runtime/error.h"

namespace hone::runtime {

int64_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kU8:
    case DType::kF8E4M3:
      return 1;
  }
  throw Error("[dtype] unknown dtype");
}

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return "f64";
    case DType::kI64:
      return "i64";
    case DType::kF32:
      return "f32";
    case DType::kI32:
      return "i32";
    case DType::kBF16:
      return "bf16";
    case DType::kU8:
      return "u8";
    case DType::kF8E4M3:
      return "f8e4m3";
  }
  return "?";
}

DType DTypeFromName(std::string_view name) {
  for (DType d : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8,
                  DType::kF8E4M3}) {
    if (DTypeName(d) == name) return d;
  }
  throw ConfigError(fmt::format(
      "[dtype] unknown dtype '{}'; one of f32, bf16, f64, i32, i64, u8, f8e4m3", name));
}

}  // namespace hone::runtime
