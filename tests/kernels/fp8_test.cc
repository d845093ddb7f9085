// emulated: all
#include "kernels/fp8/fp8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/cublaslt_fp8.h"
#include "kernels/fp8/e4m3.h"
#include "runtime/philox.h"
#include "tests/device.h"

namespace hone::kernels {
namespace {

// Normal values of very different sizes from row to row, rounded to `dtype`.
Tensor Random(Context& ctx, int64_t rows, int64_t cols, DType dtype, uint64_t seed) {
  Context host;
  RandomStream stream({seed});
  Tensor wide = host.Empty({rows, cols}, DType::kF32);
  for (int64_t i = 0; i < wide.size(); ++i) {
    double size = std::exp2(static_cast<double>(i / cols % 7) - 3);
    wide.data<float>()[i] = static_cast<float>(size * stream.Normal(static_cast<uint64_t>(i)));
  }
  Tensor narrow = host.Empty({rows, cols}, dtype);
  CopyTo(wide, narrow);
  Tensor t = ctx.Empty({rows, cols}, dtype);
  CopyTo(narrow, t, &ctx.stream());
  return t;
}

std::vector<uint8_t> BytesOf(Context& ctx, const Tensor& t) {
  Context host;
  Tensor copy = host.Empty(t.shape(), t.dtype());
  CopyTo(t, copy, &ctx.stream());
  auto* bytes = static_cast<const uint8_t*>(copy.raw());
  return {bytes, bytes + copy.bytes()};
}

std::vector<double> Transposed(const std::vector<double>& x, int64_t rows, int64_t cols) {
  std::vector<double> t;
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r) t.push_back(x[r * cols + c]);
  }
  return t;
}

// Each value is within half a step of E4M3 at its own tile's scale.
void ExpectQuantised(const std::vector<double>& x, const std::vector<double>& got, int64_t cols,
                     int64_t tile_rows) {
  ASSERT_EQ(x.size(), got.size());
  int64_t rows = static_cast<int64_t>(x.size()) / cols, tiles = (cols + kFp8Tile - 1) / kFp8Tile;
  auto tile_of = [&](int64_t r, int64_t c) { return r / tile_rows * tiles + c / kFp8Tile; };
  std::vector<double> amax(static_cast<size_t>(tile_of(rows - 1, cols - 1) + 1));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      amax[tile_of(r, c)] = std::max(amax[tile_of(r, c)], std::abs(x[r * cols + c]));
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      double value = x[r * cols + c], step = amax[tile_of(r, c)] / 448.0 * std::exp2(-10);
      double bound = std::max(std::abs(value) / 16, step) * (1 + 1e-5);
      ASSERT_LE(std::abs(got[r * cols + c] - value), bound) << "row " << r << ", column " << c;
    }
  }
}

TEST(E4M3, ValuesThatTheFormatNames) {
  EXPECT_EQ(FromE4M3(0x00), 0.f);
  EXPECT_EQ(FromE4M3(0x01), std::exp2(-9.f));
  EXPECT_EQ(FromE4M3(0x08), std::exp2(-6.f));
  EXPECT_EQ(FromE4M3(0x38), 1.f);
  EXPECT_EQ(FromE4M3(0x3c), 1.5f);
  EXPECT_EQ(FromE4M3(0x7e), 448.f);
  EXPECT_EQ(FromE4M3(0xfe), -448.f);
  EXPECT_TRUE(std::isnan(FromE4M3(0x7f)));
  EXPECT_TRUE(std::isnan(FromE4M3(0xff)));
}

// Against a search through all numbers of the format.
TEST(E4M3, RoundsToTheNearestAndTiesToEven) {
  auto nearest = [](float value) {
    int best = 0;
    for (int code = 0; code < 0x7f; ++code) {
      double d = std::abs(FromE4M3(static_cast<uint8_t>(code)) - double{value});
      double least = std::abs(FromE4M3(static_cast<uint8_t>(best)) - double{value});
      if (d < least || (d == least && code % 2 == 0)) best = code;
    }
    return best;
  };
  std::vector<float> values = {0.f, 1e-30f, 448.f, 449.f, 464.f, 1e9f, INFINITY, 0.001953125f / 2};
  for (int code = 0; code < 0x7e; ++code) {
    float low = FromE4M3(static_cast<uint8_t>(code)),
          high = FromE4M3(static_cast<uint8_t>(code + 1));
    float middle = (low + high) / 2;
    for (float v : {low, middle, std::nextafter(middle, 0.f), std::nextafter(middle, 1e9f)}) {
      values.push_back(v);
    }
  }
  for (float v : values) {
    int expected = nearest(std::min(v, 1e6f));
    EXPECT_EQ(ToE4M3(v), expected) << v;
    EXPECT_EQ(ToE4M3(-v), expected | 0x80) << -v;
  }
  EXPECT_EQ(ToE4M3(NAN), 0x7f);
}

TEST(Fp8, TilesAndBlocksKeepEachValueWithinHalfAStep) {
  Context ctx(TestDevice());
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (auto [rows, cols] :
         {std::pair<int64_t, int64_t>{3, 128}, {130, 300}, {257, 21}, {16, 256}}) {
      SCOPED_TRACE(fmt::format("{} [{}, {}]", runtime::DTypeName(dtype), rows, cols));
      Tensor x = Random(ctx, rows, cols, dtype, 7);
      std::vector<double> values = runtime::ToDoubles(x), turned = Transposed(values, rows, cols);
      auto decoded = [&](const Fp8Matrix& m) { return runtime::ToDoubles(Dequantize(ctx, m)); };
      ExpectQuantised(values, decoded(QuantizeRows(ctx, x)), cols, 1);
      ExpectQuantised(turned, decoded(QuantizeColumns(ctx, x)), rows, 1);
      ExpectQuantised(values, decoded(QuantizeBlocks(ctx, x)), cols, kFp8Tile);
      ExpectQuantised(turned, decoded(QuantizeBlocksTransposed(ctx, x)), rows, kFp8Tile);
      EXPECT_EQ(Transposed(decoded(QuantizeBlocks(ctx, x)), rows, cols),
                decoded(QuantizeBlocksTransposed(ctx, x)));
    }
  }
}

// 448 over the greatest of them does not fit f32, or the scale would not be a normal number.
TEST(Fp8, TilesOfTinyNumbers) {
  Context ctx(TestDevice());
  for (float amax : {0x1p-149f, 1e-40f, 0x1p-126f, 1e-36f, 6e-36f}) {
    std::vector<double> x(16 * 16);
    for (size_t i = 0; i < x.size(); ++i) x[i] = i % 3 == 0 ? 0.f : i % 3 == 1 ? amax : -amax / 2;
    Context host;
    Tensor wide = host.Empty({16, 16}, DType::kF64), narrow = host.Empty({16, 16}, DType::kF32);
    std::copy(x.begin(), x.end(), wide.data<double>());
    CopyTo(wide, narrow);
    Tensor t = ctx.Empty({16, 16}, DType::kF32);
    CopyTo(narrow, t, &ctx.stream());
    for (const Fp8Matrix& m : {QuantizeRows(ctx, t), QuantizeBlocks(ctx, t)}) {
      std::vector<double> got = runtime::ToDoubles(Dequantize(ctx, m));
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_LE(std::abs(got[i] - x[i]), std::abs(x[i]) / 16 + 0x1p-136) << amax << ", " << i;
      }
    }
    for (const Fp8Matrix& m : {QuantizeColumns(ctx, t), QuantizeBlocksTransposed(ctx, t)}) {
      std::vector<double> got = Transposed(runtime::ToDoubles(Dequantize(ctx, m)), 16, 16);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_LE(std::abs(got[i] - x[i]), std::abs(x[i]) / 16 + 0x1p-136) << amax << ", " << i;
      }
    }
  }
}

// Strided input, padding of zeros, and the very bytes of the CPU.
TEST(Fp8, TheDeviceGivesTheBytesOfTheCpu) {
  Context ctx(TestDevice()), host;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Tensor all = Random(ctx, 150, 270, dtype, 9), all_host = Random(host, 150, 270, dtype, 9);
    for (int64_t first : {0, 3, 8}) {
      Tensor x = all.Columns(first, first + 200), x_host = all_host.Columns(first, first + 200);
      auto expect = [&](const Fp8Matrix& got, const Fp8Matrix& want, const char* name) {
        EXPECT_EQ(BytesOf(ctx, got.values), BytesOf(host, want.values)) << name << first;
        EXPECT_EQ(BytesOf(ctx, got.scale), BytesOf(host, want.scale)) << name << first;
      };
      expect(QuantizeRows(ctx, x), QuantizeRows(host, x_host), "rows");
      expect(QuantizeColumns(ctx, x), QuantizeColumns(host, x_host), "columns");
      expect(QuantizeBlocks(ctx, x), QuantizeBlocks(host, x_host), "blocks");
      expect(QuantizeBlocksTransposed(ctx, x), QuantizeBlocksTransposed(host, x_host), "turned");
    }
  }
  Fp8Matrix m = QuantizeRows(host, Random(host, 3, 130, DType::kF32, 1));
  EXPECT_EQ(m.values.shape(), (Shape{16, 144}));
  EXPECT_EQ(m.scale.shape(), (Shape{2, 16}));
  EXPECT_EQ(BytesOf(host, m.values)[130], 0);
  EXPECT_EQ(QuantizeBlocks(host, Random(host, 130, 600, DType::kF32, 1)).scale.shape(),
            (Shape{2, 8}));
}

TEST(Fp8, AZeroTileHasScaleOneAndNanStaysNan) {
  Context ctx(TestDevice());
  Context host;
  Tensor x = host.Zeros({1, 256}, DType::kF32);
  x.data<float>()[200] = NAN;
  Tensor on_device = ctx.Empty({1, 256}, DType::kF32);
  CopyTo(x, on_device, &ctx.stream());
  Fp8Matrix m = QuantizeRows(ctx, on_device);
  std::vector<double> values = runtime::ToDoubles(Dequantize(ctx, m));
  EXPECT_EQ(values[0], 0);
  EXPECT_TRUE(std::isnan(values[200]));
  EXPECT_EQ(runtime::ToDoubles(m.scale)[0], 1);
}

struct Sizes {
  int64_t tokens, in, out;
};

// sum over k of a[m, k] · b[n, k], in double.
std::vector<double> Product(const std::vector<double>& a, const std::vector<double>& b,
                            int64_t inner) {
  std::vector<double> out;
  for (size_t m = 0; m < a.size(); m += inner) {
    for (size_t n = 0; n < b.size(); n += inner) {
      double sum = 0;
      for (int64_t k = 0; k < inner; ++k) sum += a[m + k] * b[n + k];
      out.push_back(sum);
    }
  }
  return out;
}

double RelativeError(const std::vector<double>& got, const std::vector<double>& want) {
  EXPECT_EQ(got.size(), want.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}

// Against the exact product: what quantisation costs. Against the product of the quantised values:
// what the arithmetic costs.
TEST(Fp8, LinearAndItsGradients) {
  Context ctx(TestDevice());
  // Hopper's tensor cores add fp8 products of a tile with about 14 bits (arXiv 2412.19437, 3.3.2).
  const double arithmetic = OnGpu() ? 1e-3 : 1e-6;
  for (Sizes s : {Sizes{5, 256, 48}, Sizes{33, 144, 130}}) {
    SCOPED_TRACE(s.tokens);
    Tensor x = Random(ctx, s.tokens, s.in, DType::kF32, 1);
    Tensor w = Random(ctx, s.out, s.in, DType::kF32, 2),
           dy = Random(ctx, s.tokens, s.out, DType::kF32, 3);
    auto xs = runtime::ToDoubles(x), ws = runtime::ToDoubles(w), dys = runtime::ToDoubles(dy);
    auto xt = Transposed(xs, s.tokens, s.in), dyt = Transposed(dys, s.tokens, s.out);
    auto wt = Transposed(ws, s.out, s.in);
    auto coarse = [&](const Fp8Matrix& m) { return runtime::ToDoubles(Dequantize(ctx, m)); };

    std::vector<double> y = runtime::ToDoubles(Fp8Linear(ctx, x, w));
    EXPECT_LE(RelativeError(y, Product(xs, ws, s.in)), 5e-2);
    EXPECT_LE(RelativeError(
                  y, Product(coarse(QuantizeRows(ctx, x)), coarse(QuantizeBlocks(ctx, w)), s.in)),
              arithmetic);
    std::vector<double> dx = runtime::ToDoubles(Fp8LinearInputGradient(ctx, dy, w));
    EXPECT_LE(RelativeError(dx, Product(dys, wt, s.out)), 5e-2);
    EXPECT_LE(RelativeError(dx, Product(coarse(QuantizeRows(ctx, dy)),
                                        coarse(QuantizeBlocksTransposed(ctx, w)), s.out)),
              arithmetic);
    Tensor dw = Random(ctx, s.out, s.in, DType::kF32, 4);
    std::vector<double> before = runtime::ToDoubles(dw);
    Fp8LinearWeightGradient(ctx, dy, x, dw);
    std::vector<double> added = runtime::ToDoubles(dw);
    for (size_t i = 0; i < added.size(); ++i) added[i] -= before[i];
    EXPECT_LE(RelativeError(added, Product(dyt, xt, s.tokens)), 5e-2);
    EXPECT_LE(RelativeError(added, Product(coarse(QuantizeColumns(ctx, dy)),
                                           coarse(QuantizeColumns(ctx, x)), s.tokens)),
              std::max(arithmetic, 1e-5));
  }
}

// What a GPU without products of a part of a tile is given.
TEST(Fp8, ZerosUpToWholeTilesLeaveTheProduct) {
  Context ctx(TestDevice());
  for (int64_t inner : {48, 130, 256, 576}) {
    const Fp8Matrix a = QuantizeRows(ctx, Random(ctx, 5, inner, DType::kF32, 1));
    const Fp8Matrix b = QuantizeBlocks(ctx, Random(ctx, 130, inner, DType::kF32, 2));
    const Fp8Matrix whole_a = cuda::WithWholeTiles(ctx, a);
    Fp8Matrix whole_b = cuda::WithWholeTiles(ctx, b);
    const int64_t whole = (inner + 127) / 128 * 128;
    EXPECT_EQ(whole_a.values.shape(), (Shape{16, whole}));  // tiles: of any rows
    EXPECT_EQ(whole_b.values.shape(), (Shape{256, whole}));
    EXPECT_EQ(cuda::HasWholeTiles(a), inner == whole);
    EXPECT_FALSE(cuda::HasWholeTiles(b));
    EXPECT_TRUE(cuda::HasWholeTiles(whole_a) && cuda::HasWholeTiles(whole_b));
    whole_b.rows = 256;  // to see those that were added
    Tensor y = ctx.Empty({5, 130}, DType::kF32), whole_y = ctx.Empty({5, 256}, DType::kF32);
    Fp8Multiply(ctx, a, b, y);
    Fp8Multiply(ctx, whole_a, whole_b, whole_y);
    EXPECT_EQ(runtime::ToDoubles(whole_y.Columns(0, 130)), runtime::ToDoubles(y)) << inner;
    EXPECT_THAT(runtime::ToDoubles(whole_y.Columns(130, 256)), testing::Each(0)) << inner;
  }
}

// Three experts, one of them without rows: each is a linear layer of its own.
TEST(Fp8, ExpertsAreLinearLayersOfTheirRows) {
  Context ctx(TestDevice());
  const std::vector<int64_t> offsets = {0, 17, 17, 40};
  const int64_t in = 144, out = 48;
  Tensor x = Random(ctx, 40, in, DType::kBF16, 1), dy = Random(ctx, 40, out, DType::kBF16, 2);
  Tensor w = Random(ctx, 3 * out, in, DType::kBF16, 3).Reshape({3, out, in});
  Tensor dw = ctx.Zeros({3, out, in}, DType::kF32);
  Tensor y = Fp8GroupedLinear(ctx, x, w, offsets);
  Tensor dx = Fp8GroupedLinearInputGradient(ctx, dy, w, offsets);
  Fp8GroupedLinearWeightGradient(ctx, dy, x, dw, offsets);
  for (int64_t e = 0; e < 3; ++e) {
    int64_t begin = offsets[e], end = offsets[e + 1];
    Tensor we = w.Slice(e, e + 1).Reshape({out, in}), dwe = ctx.Zeros({out, in}, DType::kF32);
    if (begin < end) {
      Tensor xe = x.Slice(begin, end), dye = dy.Slice(begin, end);
      EXPECT_EQ(runtime::ToDoubles(y.Slice(begin, end)),
                runtime::ToDoubles(Fp8Linear(ctx, xe, we)));
      EXPECT_EQ(runtime::ToDoubles(dx.Slice(begin, end)),
                runtime::ToDoubles(Fp8LinearInputGradient(ctx, dye, we)));
      Fp8LinearWeightGradient(ctx, dye, xe, dwe);
    }
    EXPECT_EQ(runtime::ToDoubles(dw.Slice(e, e + 1)), runtime::ToDoubles(dwe)) << "expert " << e;
  }
  EXPECT_THROW(Fp8GroupedLinear(ctx, x, w, {0, 17, 40}), ShapeError);
}

TEST(Fp8, BlocksByBlocksIsRefused) {
  Context ctx(TestDevice());
  Fp8Matrix w = QuantizeBlocks(ctx, Random(ctx, 16, 16, DType::kF32, 1));
  EXPECT_THROW(Fp8Multiply(ctx, w, w, ctx.Empty({16, 16}, DType::kF32)), ShapeError);
}

}  // namespace
}  // namespace hone::kernels
