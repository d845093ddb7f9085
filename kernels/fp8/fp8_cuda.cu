// Quantisation is bound by memory: each element is read once, in 16 bytes at a time where the rows
// allow it, and a tile stays in registers or shared memory from its maximum to its bytes.
#include "kernels/cuda/element.h"
#include "kernels/cuda/fp8_convert.h"
#include "kernels/cuda/reduce.h"
#include "kernels/fp8/e4m3.h"
#include "kernels/fp8/fp8_cuda.h"

namespace hone::kernels::cuda {
namespace {

constexpr int kTile = static_cast<int>(kFp8Tile);
constexpr int kThreads = 256;
constexpr int kEight = 8;                // elements a thread takes at once
constexpr int kPieces = kTile / kEight;  // threads that share 128 neighbours
constexpr int kStrip = 32;               // columns of x that a block transposes

// x [rows, cols], read as 0 outside.
template <class T>
struct Source {
  const T* data;
  int64_t stride, rows, cols;
  bool aligned;  // every eighth element begins at a multiple of 16 bytes

  __device__ void Load8(int64_t r, int64_t c, float* v) const {
    if (r < rows && c + kEight <= cols && aligned) {
      constexpr int kSize = Pack<T>::kSize;
      for (int p = 0; p < kEight; p += kSize) {
        Pack<T> pack = LoadPack(data + r * stride + c + p);
        for (int i = 0; i < kSize && p + i < kEight; ++i) v[p + i] = Load(pack.v[i]);
      }
      return;
    }
    for (int i = 0; i < kEight; ++i) {
      v[i] = r < rows && c + i < cols ? Load(data[r * stride + c + i]) : 0.f;
    }
  }
};

template <class T>
Source<T> SourceOf(const Tensor& x) {
  bool aligned = reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0 &&
                 x.row_stride() * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  return {x.data<T>(), x.row_stride(), x.dim(0), x.dim(1), aligned};
}

// values [high, wide] and their scales.
struct Target {
  uint8_t* values;
  float* scale;
  int64_t high, wide, scale_stride;

  __device__ void Store8(int64_t r, int64_t c, const float* v, float inverse) const {
    if (r >= high || c >= wide) return;
    union {
      uint8_t byte[kEight];
      uint64_t all;
    } packed;
    for (int i = 0; i < kEight; ++i) packed.byte[i] = ToE4M3(v[i] * inverse);
    *reinterpret_cast<uint64_t*>(values + r * wide + c) = packed.all;
  }
};

Target TargetOf(const Fp8Matrix& m) {
  return {static_cast<uint8_t*>(m.values.raw()), m.scale.data<float>(), m.values.dim(0),
          m.values.dim(1), m.scale.dim(1)};
}

// kMaxE4M3 for a tile of zeros or NaN: its scale is 1.
__device__ float Range(float amax) { return amax > 0 ? fmaxf(amax, kLeastAmax) : kMaxE4M3; }
__device__ float ScaleOf(float amax) { return Range(amax) / kMaxE4M3; }
__device__ float InverseOf(float amax) { return kMaxE4M3 / Range(amax); }

__device__ float Amax8(const float* v, float amax) {
  Max max;
  for (int i = 0; i < kEight; ++i) amax = max(fabsf(v[i]), amax);
  return amax;
}

// kPieces neighbouring threads a tile.
template <class T>
__global__ void RowTilesKernel(Source<T> x, Target out, int64_t tiles) {
  int64_t index = (blockIdx.x * int64_t{kThreads} + threadIdx.x) / kPieces;
  int64_t r = index / tiles, tile = index % tiles;
  int piece = static_cast<int>(threadIdx.x) % kPieces;
  int64_t c = tile * kTile + piece * kEight;
  float v[kEight];
  x.Load8(r, c, v);
  float amax = Amax8(v, 0.f);
  for (int step = 1; step < kPieces; step *= 2) {
    amax = Max{}(amax, __shfl_xor_sync(kAllLanes, amax, step));
  }
  out.Store8(r, c, v, InverseOf(amax));
  if (piece == 0 && r < out.high) out.scale[tile * out.scale_stride + r] = ScaleOf(amax);
}

// A block takes 128 rows and kStrip columns of x, which become kStrip tiles of the transpose.
template <class T>
__global__ void ColumnTilesKernel(Source<T> x, Target out) {
  __shared__ float tile[kTile * (kStrip + 1)];
  int64_t r0 = blockIdx.x * int64_t{kTile}, c0 = blockIdx.y * int64_t{kStrip};
  constexpr int kAcross = kStrip / kEight;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kAcross; i += kThreads) {
    float v[kEight];
    int r = i / kAcross, c = i % kAcross * kEight;
    x.Load8(r0 + r, c0 + c, v);
    for (int j = 0; j < kEight; ++j) tile[r * (kStrip + 1) + c + j] = v[j];
  }
  __syncthreads();
  constexpr int kWarps = kThreads / kWarpSize, kEach = kTile / kWarpSize;
  for (int c = Warp(); c < kStrip; c += kWarps) {
    float v[kEach], amax = 0;
    for (int i = 0; i < kEach; ++i) {
      v[i] = tile[(i * kWarpSize + Lane()) * (kStrip + 1) + c];
      amax = Max{}(fabsf(v[i]), amax);
    }
    amax = WarpMax(amax);
    for (int i = 0; i < kEach; ++i) {
      int64_t at = r0 + i * kWarpSize + Lane();
      if (c0 + c < out.high && at < out.wide) {
        out.values[(c0 + c) * out.wide + at] = ToE4M3(v[i] * InverseOf(amax));
      }
    }
    if (Lane() == 0 && c0 + c < out.high) {
      out.scale[blockIdx.x * out.scale_stride + c0 + c] = ScaleOf(amax);
    }
  }
}

// A block of threads takes a block of w, whole.
template <class T>
__global__ void BlocksKernel(Source<T> x, Target out, bool transposed) {
  constexpr int kRounds = kTile * kPieces / kThreads, kPadded = kTile + 4;
  __shared__ uint8_t turned[kTile * kPadded];
  int64_t r0 = blockIdx.y * int64_t{kTile}, c0 = blockIdx.x * int64_t{kTile};
  int piece = static_cast<int>(threadIdx.x) % kPieces * kEight;
  int first_row = static_cast<int>(threadIdx.x) / kPieces;
  float v[kRounds][kEight], amax = 0;
  for (int i = 0; i < kRounds; ++i) {
    x.Load8(r0 + first_row + i * (kThreads / kPieces), c0 + piece, v[i]);
    amax = Amax8(v[i], amax);
  }
  amax = BlockReduce(amax, Max{}, 0.f);
  float inverse = InverseOf(amax);
  for (int i = 0; i < kRounds; ++i) {
    int r = first_row + i * (kThreads / kPieces);
    if (!transposed) {
      out.Store8(r0 + r, c0 + piece, v[i], inverse);
    } else {
      for (int j = 0; j < kEight; ++j)
        turned[(piece + j) * kPadded + r] = ToE4M3(v[i][j] * inverse);
    }
  }
  __syncthreads();
  if (transposed) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kThreads) {
      int64_t r = c0 + i / kTile, c = r0 + i % kTile;
      if (r < out.high && c < out.wide) {
        out.values[r * out.wide + c] = turned[i / kTile * kPadded + i % kTile];
      }
    }
  }
  int64_t band = transposed ? blockIdx.x : blockIdx.y, tile = transposed ? blockIdx.y : blockIdx.x;
  int64_t tiles = transposed ? gridDim.y : gridDim.x;
  if (threadIdx.x == 0) {
    float* row = out.scale + band * out.scale_stride;
    row[tile] = ScaleOf(amax);
    if (tile + 1 == tiles) {
      for (int64_t i = tiles; i < out.scale_stride; ++i) row[i] = 1.f;
    }
  }
}

}  // namespace

template <class T>
void QuantizeTiles(Context& ctx, const Tensor& x_RC, bool transposed, const Fp8Matrix& out) {
  Source<T> x = SourceOf<T>(x_RC);
  Target target = TargetOf(out);
  if (target.high == 0 || target.wide == 0) return;
  if (transposed) {
    Blocks blocks{dim3(static_cast<unsigned>(CeilDiv(target.wide, kTile)),
                       static_cast<unsigned>(CeilDiv(target.high, kStrip))),
                  kThreads};
    return Launch(ctx, "quantize_columns", ColumnTilesKernel<T>, blocks, x, target);
  }
  int64_t tiles = CeilDiv(target.wide, kTile);
  auto grid = static_cast<unsigned>(CeilDiv(target.high * tiles * kPieces, kThreads));
  Launch(ctx, "quantize_rows", RowTilesKernel<T>, {grid, kThreads}, x, target, tiles);
}

template <class T>
void QuantizeBlocks(Context& ctx, const Tensor& w_RC, bool transposed, const Fp8Matrix& out) {
  if (w_RC.size() == 0) return;
  Blocks blocks{dim3(static_cast<unsigned>(CeilDiv(w_RC.dim(1), kTile)),
                     static_cast<unsigned>(CeilDiv(w_RC.dim(0), kTile))),
                kThreads};
  Launch(ctx, "quantize_blocks", BlocksKernel<T>, blocks, SourceOf<T>(w_RC), TargetOf(out),
         transposed);
}

template void QuantizeTiles<float>(Context&, const Tensor&, bool, const Fp8Matrix&);
template void QuantizeTiles<BF16>(Context&, const Tensor&, bool, const Fp8Matrix&);
template void QuantizeBlocks<float>(Context&, const Tensor&, bool, const Fp8Matrix&);
template void QuantizeBlocks<BF16>(Context&, const Tensor&, bool, const Fp8Matrix&);

}  // namespace hone::kernels::cuda
