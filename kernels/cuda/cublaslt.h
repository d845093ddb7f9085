// Dense products on the device, by cuBLASLt (cublaslt_cuda.cc). The emulator has loops of its own.
#pragma once

#include <string_view>

#include "runtime/context.h"

namespace hone::kernels::cuda {

// c = a · b (+ bias in every row), or c += a · b where `accumulate`. All matrices are row-major, with
// `stride` elements from row to row; sums are f32 (f64 for f64), never TF32. The inputs share a dtype;
// the output has it too, or is f32.
struct Product {
  struct Operand {
    const void* data = nullptr;
    int64_t stride = 0;
    bool transposed = false;  // is stored as [cols, rows] of its role
  };
  int64_t rows = 0, cols = 0, inner = 0;
  DType input = DType::kF32, output = DType::kF32;
  Operand a;          // [rows, inner]
  Operand b;          // [inner, cols]
  void* c = nullptr;  // [rows, cols]
  int64_t c_stride = 0;
  const void* bias = nullptr;  // [cols], of the output's dtype
  bool accumulate = false;
  // The bits of a row of c depend on nothing but that row of a, b and bias: not on `rows`. Free to
  // choose by the shape otherwise. Deterministic in both.
  bool row_invariant = true;
};

// Asynchronous, on ctx's stream. Nothing may be empty.
void Multiply(Context& ctx, std::string_view op, const Product& product);

}  // namespace hone::kernels::cuda
