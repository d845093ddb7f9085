// Products of tiles in shared memory, for the attention kernels.
//
// A block has kTileThreads threads in a 16 × 16 grid: thread (y, x) has rows y·kA … of the one
// operand and rows x·kB … of the other. Every element of a product is one chain of fused
// multiply-adds in ascending order, so its bits do not depend on how tiles are cut. Operands are
// rows in global memory, listed by pointer; absent rows (null) count as 0.
#pragma once

#include "kernels/cuda/row_math.h"

namespace hone::kernels::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kSide = 16;   // of the grid of threads
inline constexpr int kTile = 64;   // terms of a weighted sum; also the columns made at a time
inline constexpr int kDepth = 32;  // terms of a dot product that are staged together
inline constexpr int kPad = 4;     // keeps rows of shared memory 16-byte aligned, in other banks
inline constexpr int kTileStride = kTile + kPad;

__device__ __forceinline__ int TileY() { return static_cast<int>(threadIdx.x) / kSide; }
__device__ __forceinline__ int TileX() { return static_cast<int>(threadIdx.x) % kSide; }

// Elements of shared memory that Product and AddWeighted stage operands in.
template <int kA, int kB>
inline constexpr int kStageSize = std::max(kDepth*(kSide*(kA + kB) + 2 * kPad), kTile* kTileStride);

// Elements between rows of an accumulator with `dim` columns.
__host__ __device__ inline int64_t AccumulatorStride(int64_t dim) {
  return (dim + 3) / 4 * 4 + kPad;
}

// tile[c · (kCount + kPad) + r] = row r's column first + c, for kDepth columns.
template <int kCount, class T>
__device__ void StageColumns(const T* const* rows, int64_t first, int64_t dim, bool aligned,
                             Acc<T>* tile) {
  constexpr int kSize = Pack<T>::kSize;
  for (int n = static_cast<int>(threadIdx.x); n < kCount * (kDepth / kSize); n += kTileThreads) {
    int row = n % kCount, c = n / kCount * kSize;
    const T* from = rows[row];
    Acc<T> v[kSize] = {};
    if (from != nullptr) LoadPacks<kSize>(from + first + c, dim - first - c, aligned, v);
    for (int j = 0; j < kSize; ++j) tile[(c + j) * (kCount + kPad) + row] = v[j];
  }
}

// tile[r · kTileStride + c] = row r's column first + c, for kTile rows and columns.
template <class T>
__device__ void StageRows(const T* const* rows, int64_t first, int64_t dim, bool aligned,
                          Acc<T>* tile) {
  constexpr int kSize = Pack<T>::kSize;
  for (int n = static_cast<int>(threadIdx.x); n < kTile * (kTile / kSize); n += kTileThreads) {
    int row = n / (kTile / kSize), c = n % (kTile / kSize) * kSize;
    const T* from = rows[row];
    Acc<T> v[kSize] = {};
    if (from != nullptr) LoadPacks<kSize>(from + first + c, dim - first - c, aligned, v);
    StorePacks<kSize>(v, kSize, true, tile + row * kTileStride + c);
  }
}

// sum[a][b] = Σ_c left row (y·kA + a) [c] · right row (x·kB + b) [c]. The whole block calls;
// `stage` is free again when it returns.
template <int kA, int kB, class T>
__device__ void Product(const T* const* left, const T* const* right, int64_t dim, bool left_aligned,
                        bool right_aligned, Acc<T>* stage, Acc<T> (&sum)[kA][kB]) {
  using A = Acc<T>;
  constexpr int kLeft = kSide * kA + kPad, kRight = kSide * kB + kPad;
  A* right_stage = stage + kDepth * kLeft;
  for (int a = 0; a < kA; ++a) {
    for (int b = 0; b < kB; ++b) sum[a][b] = 0;
  }
  for (int64_t first = 0; first < dim; first += kDepth) {
    StageColumns<kSide * kA>(left, first, dim, left_aligned, stage);
    StageColumns<kSide * kB>(right, first, dim, right_aligned, right_stage);
    __syncthreads();
#pragma unroll 8
    for (int c = 0; c < kDepth; ++c) {
      A l[kA], r[kB];
#pragma unroll
      for (int a = 0; a < kA; ++a) l[a] = stage[c * kLeft + TileY() * kA + a];
#pragma unroll
      for (int b = 0; b < kB; ++b) r[b] = right_stage[c * kRight + TileX() * kB + b];
#pragma unroll
      for (int a = 0; a < kA; ++a) {
#pragma unroll
        for (int b = 0; b < kB; ++b) sum[a][b] = Fma(l[a], r[b], sum[a][b]);
      }
    }
    __syncthreads();
  }
}

// out row (y·kOut + a) = factor · itself + Σ_s weight(s) · row s, over kTile rows; `out` in shared
// memory, AccumulatorStride(dim) apart. weight(s) is weight[s] of that row of `weight`, kTileStride
// apart, or with kTransposed weight[y·kOut + a] of row s. `factor` may be null: 1. The whole block
// calls; weights and factors are read behind a barrier of its own, so they may just have been
// written. `stage` is free again when it returns.
template <int kOut, bool kTransposed, class T>
__device__ void AddWeighted(const Acc<T>* weight, int weight_stride, const T* const* rows,
                            int64_t dim, bool aligned, const Acc<T>* factor, Acc<T>* stage,
                            Acc<T>* out) {
  using A = Acc<T>;
  int64_t out_stride = AccumulatorStride(dim);
  for (int64_t first = 0; first < dim; first += kTile) {
    StageRows(rows, first, dim, aligned, stage);
    __syncthreads();
    int64_t column = first + TileX() * 4;
    if (column < dim) {
      A sum[kOut][4];
#pragma unroll
      for (int a = 0; a < kOut; ++a) {
        int row = TileY() * kOut + a;
        LoadPacks<4>(out + row * out_stride + column, 4, true, sum[a]);
        if (factor != nullptr) {
          for (int b = 0; b < 4; ++b) sum[a][b] *= factor[row];
        }
      }
#pragma unroll 8
      for (int s = 0; s < kTile; ++s) {
        A v[4];
        LoadPacks<4>(stage + s * kTileStride + TileX() * 4, 4, true, v);
#pragma unroll
        for (int a = 0; a < kOut; ++a) {
          int row = TileY() * kOut + a;
          A w = kTransposed ? weight[s * weight_stride + row] : weight[row * weight_stride + s];
#pragma unroll
          for (int b = 0; b < 4; ++b) sum[a][b] = Fma(w, v[b], sum[a][b]);
        }
      }
#pragma unroll
      for (int a = 0; a < kOut; ++a) {
        StorePacks<4>(sum[a], 4, true, out + (TileY() * kOut + a) * out_stride + column);
      }
    }
    __syncthreads();
  }
}

}  // namespace hone::kernels::cuda
