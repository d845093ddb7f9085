// Block-scaled products in fp8 on the device, by cuBLASLt (cublaslt_fp8_cuda.cc). The emulator has
// loops of its own.
#pragma once

#include "kernels/fp8/fp8.h"

namespace hone::kernels::cuda {

// All that decides what a product does, for the stream's recorder.
struct Fp8Product {
  Fp8Product(const Fp8Matrix& a, const Fp8Matrix& b, const Tensor& out, bool accumulate)
      : a_values(a.values.raw()),
        a_scale(a.scale.raw()),
        b_values(b.values.raw()),
        b_scale(b.scale.raw()),
        out(out.raw()),
        rows(a.rows),
        cols(b.rows),
        inner(a.cols),
        out_stride(out.row_stride()),
        accumulate(accumulate) {}

  const void *a_values, *a_scale, *b_values, *b_scale;
  void* out;
  int64_t rows, cols, inner, out_stride;
  bool accumulate;
};

// Where neither the last tile nor the last block is a part of one.
inline bool HasWholeTiles(const Fp8Matrix& m) {
  return m.values.dim(1) % kFp8Tile == 0 && (!m.blocks || m.values.dim(0) % kFp8Tile == 0);
}

// The same numbers with zeros up to whole tiles, or blocks: the scales are there.
inline Fp8Matrix WithWholeTiles(Context& ctx, const Fp8Matrix& m) {
  auto whole_tiles = [](int64_t n) { return (n + kFp8Tile - 1) / kFp8Tile * kFp8Tile; };
  const int64_t rows = m.values.dim(0), cols = m.values.dim(1);
  Fp8Matrix whole = m;
  whole.cols = whole_tiles(cols);
  whole.values = ctx.Zeros({m.blocks ? whole_tiles(rows) : rows, whole.cols}, m.values.dtype());
  CopyTo(m.values, whole.values.Slice(0, rows).Columns(0, cols), &ctx.stream());
  return whole;
}

// As kernels::Fp8Multiply, whose checks have been made. Asynchronous. DeviceError where the GPU has
// no such product: it is Hopper's.
void MultiplyFp8(Context& ctx, const Fp8Matrix& a_MK, const Fp8Matrix& b_NK, const Tensor& out_MN,
                 bool accumulate);

}  // namespace hone::kernels::cuda
