// Launching what works on each element by itself.
#pragma once

#include <algorithm>

#include "kernels/cuda/row_math.h"

namespace hone::kernels::cuda {

// Calls fn(row, i, count, aligned) for every `fn.kWidth` elements [i, i + count) of every row; see
// LoadPacks for `aligned`. `tiles` blocks share a row.
template <class Fn>
__global__ void ElementKernel(int64_t cols, int64_t tiles, bool aligned, Fn fn) {
  int64_t row = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  int64_t i = (tile * blockDim.x + threadIdx.x) * Fn::kWidth;
  if (i < cols) fn(row, i, cols - i < Fn::kWidth ? cols - i : Fn::kWidth, aligned);
}

inline constexpr int kElementThreads = 256;

// fn holds the Rows of `tensors`, which all have the first one's shape. With `flat`, and where all
// of them are contiguous, they count as one long row: fn must not look at the row then.
template <class Fn, class... Tensors>
void ForEachElement(Context& ctx, std::string_view op, bool flat, const Fn& fn, const Tensor& first,
                    const Tensors&... tensors) {
  if (first.size() == 0) return;
  if (flat && first.rows() > 1 && first.contiguous() && (tensors.contiguous() && ...)) {
    Shape line = {first.size()};
    ForEachElement(ctx, op, false, fn, first.Reshape(line), tensors.Reshape(line)...);
    return;
  }
  int64_t rows = first.rows(), cols = first.cols();
  int64_t width = std::min<int64_t>(kElementThreads, CeilDiv(cols, Fn::kWidth));
  int64_t threads = ThreadsFor(width, kElementThreads), tiles = CeilDiv(cols, threads * Fn::kWidth);
  Launch(ctx, op, ElementKernel<Fn>,
         {static_cast<unsigned>(rows * tiles), static_cast<unsigned>(threads)}, cols, tiles,
         RowsAligned(first, tensors...), fn);
}

// Elements a thread takes: 16 bytes of the narrowest type.
template <class... T>
inline constexpr int kWidthOf = std::max({Pack<T>::kSize...});

}  // namespace hone::kernels::cuda
