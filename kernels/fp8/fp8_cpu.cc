#include "kernels/fp8/fp8_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/fp8/e4m3.h"

namespace hone::kernels::cpu {
namespace {

// The scale of a tile, and what its elements are multiplied by.
struct Scale {
  float scale = 1, inverse = 1;
  explicit Scale(float amax) {
    if (amax > 0) {
      amax = std::max(amax, kLeastAmax);
      scale = amax / kMaxE4M3;
      inverse = kMaxE4M3 / amax;
    }
  }
};

// NaN wins.
float Larger(float a, float b) { return a > b || std::isnan(a) ? a : b; }

// Reads x, or its transpose; 0 outside of it.
template <class T>
class Source {
 public:
  Source(const Tensor& x, bool transposed)
      : x_(x), transposed_(transposed), rows_(x.dim(0)), cols_(x.dim(1)) {}
  float operator()(int64_t r, int64_t c) const {
    if (transposed_) std::swap(r, c);
    return r < rows_ && c < cols_ ? static_cast<float>(x_[r][c]) : 0.f;
  }

 private:
  Rows<T> x_;
  bool transposed_;
  int64_t rows_, cols_;
};

uint8_t* Bytes(const Fp8Matrix& m) { return static_cast<uint8_t*>(m.values.raw()); }

}  // namespace

template <class T>
void QuantizeTiles(Context& ctx, const Tensor& x_RC, bool transposed, const Fp8Matrix& out) {
  Source<T> x(x_RC, transposed);
  const int64_t high = out.values.dim(0), wide = out.values.dim(1);
  ctx.pool().ParallelFor(high, RowGrain(wide), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t first = 0; first < wide; first += kFp8Tile) {
        int64_t last = std::min(wide, first + kFp8Tile);
        float amax = 0;
        for (int64_t c = first; c < last; ++c) amax = Larger(std::fabs(x(r, c)), amax);
        Scale scale(amax);
        for (int64_t c = first; c < last; ++c) {
          Bytes(out)[r * wide + c] = ToE4M3(x(r, c) * scale.inverse);
        }
        if (first < out.cols) out.scale.row<float>(first / kFp8Tile)[r] = scale.scale;
      }
    }
  });
}

template <class T>
void QuantizeBlocks(Context& ctx, const Tensor& w_RC, bool transposed, const Fp8Matrix& out) {
  Source<T> w(w_RC, transposed);
  const int64_t high = out.values.dim(0), wide = out.values.dim(1);
  std::fill_n(out.scale.data<float>(), out.scale.size(), 1.f);
  ctx.pool().ParallelFor(out.scale.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t band = begin; band < end; ++band) {
      int64_t top = band * kFp8Tile, bottom = std::min(high, top + kFp8Tile);
      for (int64_t first = 0; first < wide; first += kFp8Tile) {
        int64_t last = std::min(wide, first + kFp8Tile);
        float amax = 0;
        for (int64_t r = top; r < bottom; ++r) {
          for (int64_t c = first; c < last; ++c) amax = Larger(std::fabs(w(r, c)), amax);
        }
        Scale scale(amax);
        for (int64_t r = top; r < bottom; ++r) {
          for (int64_t c = first; c < last; ++c) {
            Bytes(out)[r * wide + c] = ToE4M3(w(r, c) * scale.inverse);
          }
        }
        out.scale.row<float>(band)[first / kFp8Tile] = scale.scale;
      }
    }
  });
}

// Tile by tile: a tile's products are summed in f32, then scaled and added in f32.
template <class T>
void Fp8Multiply(Context& ctx, const Fp8Matrix& a, const Fp8Matrix& b, const Tensor& out_MN,
                 bool accumulate) {
  float decoded[256];
  for (int i = 0; i < 256; ++i) decoded[i] = FromE4M3(static_cast<uint8_t>(i));
  auto scale = [](const Fp8Matrix& m, int64_t row, int64_t tile) {
    return m.blocks ? m.scale.row<float>(row / kFp8Tile)[tile] : m.scale.row<float>(tile)[row];
  };
  const int64_t wide = a.values.dim(1);
  Rows<T> out(out_MN);
  ctx.pool().ParallelFor(a.rows, RowGrain(b.rows * a.cols), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t n = 0; n < b.rows; ++n) {
        float sum = accumulate ? static_cast<float>(out[m][n]) : 0.f;
        for (int64_t first = 0; first < a.cols; first += kFp8Tile) {
          float part = 0;
          for (int64_t k = first; k < std::min(a.cols, first + kFp8Tile); ++k) {
            part += decoded[Bytes(a)[m * wide + k]] * decoded[Bytes(b)[n * wide + k]];
          }
          int64_t tile = first / kFp8Tile;
          sum += part * (scale(a, m, tile) * scale(b, n, tile));
        }
        out[m][n] = static_cast<T>(sum);
      }
    }
  });
}

template void QuantizeTiles<float>(Context&, const Tensor&, bool, const Fp8Matrix&);
template void QuantizeTiles<BF16>(Context&, const Tensor&, bool, const Fp8Matrix&);
template void QuantizeBlocks<float>(Context&, const Tensor&, bool, const Fp8Matrix&);
template void QuantizeBlocks<BF16>(Context&, const Tensor&, bool, const Fp8Matrix&);
template void Fp8Multiply<float>(Context&, const Fp8Matrix&, const Fp8Matrix&, const Tensor&, bool);
template void Fp8Multiply<BF16>(Context&, const Fp8Matrix&, const Fp8Matrix&, const Tensor&, bool);

}  // namespace hone::kernels::cpu
