// emulated: all
#include "kernels/embedding/embedding.h"

#include "kernels/elementwise/elementwise.h"
#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

TEST(Embedding, LooksUpRows) {
  Context ctx(TestDevice());
  std::vector<int32_t> token = {4, 0, 4, 2};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    for (int64_t dim : {7, 64, 4500}) {
      Tensor table = Random(ctx, {5, dim}, dtype, 1);
      Tensor y = Embedding(ctx, table, token);
      ASSERT_EQ(y.shape(), (Shape{4, dim}));
      for (int64_t t = 0; t < 4; ++t) {
        ExpectSameBits(y.Slice(t, t + 1), table.Slice(token[t], token[t] + 1), "row");
      }
    }
  }
}

TEST(Embedding, SetsRows) {
  Context ctx(TestDevice());
  std::vector<int32_t> row = {4, 0, 2};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
    for (int64_t dim : {7, 64}) {
      // Rows of a wider table, as latents lie in a cache.
      Tensor wide = Random(ctx, {5, dim + 8}, dtype, 1), before = ctx.Clone(wide);
      Tensor x = Random(ctx, {3, dim}, dtype, 2), table = wide.Columns(8, dim + 8);
      SetRows(ctx, table, row, x);
      for (int64_t t = 0; t < 3; ++t) {
        ExpectSameBits(table.Slice(row[t], row[t] + 1), x.Slice(t, t + 1), "set");
      }
      for (int64_t r : {1, 3}) {
        ExpectSameBits(wide.Slice(r, r + 1), before.Slice(r, r + 1), "not named");
      }
      ExpectSameBits(wide.Columns(0, 8), before.Columns(0, 8), "beside");
    }
  }
}

TEST(Embedding, BackwardAddsEveryUseOfAToken) {
  Context ctx(TestDevice());
  std::vector<int32_t> token = {4, 0, 4, 2, 4};
  Tensor table = Random(ctx, {5, 7}, DType::kF64, 1), dy = Random(ctx, {5, 7}, DType::kF64, 2);
  Tensor dtable = ctx.Zeros({5, 7}, DType::kF64);
  EmbeddingBackward(ctx, dy, token, dtable);
  auto loss = [&] { return WeightedSum(Embedding(ctx, table, token), dy); };
  ExpectClose(dtable, NumericGradient(table, loss), 1e-8, "dtable");
  EmbeddingBackward(ctx, dy, token, dtable);
  ScaleInPlace(ctx, dtable, 0.5);
  ExpectClose(dtable, NumericGradient(table, loss), 1e-8, "dtable is added to");
}

TEST(Embedding, BackwardOfWideRowsMatchesDouble) {
  Context ctx(TestDevice());
  std::vector<int32_t> token = {3, 1, 1, 0, 3, 3, 1};
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int64_t dim : {100, 1304}) {
      Tensor dy = Random(ctx, {7, dim}, dtype, 1), dtable = Random(ctx, {5, dim}, DType::kF32, 2);
      std::vector<double> want = runtime::ToDoubles(dtable), g = runtime::ToDoubles(dy);
      for (int64_t t = 0; t < 7; ++t) {
        for (int64_t i = 0; i < dim; ++i) want[token[t] * dim + i] += g[t * dim + i];
      }
      EmbeddingBackward(ctx, dy, token, dtable);
      ExpectClose(dtable, want, 1e-6, "dtable");
    }
  }
}

TEST(Embedding, BackwardOfBf16AddsInF32) {
  Context ctx(TestDevice());
  std::vector<int32_t> token(1000, 1);  // 1000 equal summands: bf16 would stop growing at 256
  Tensor dy = Make(ctx, {1000, 3}, std::vector<double>(3000, 1.0), DType::kBF16);
  Tensor dtable = ctx.Zeros({2, 3}, DType::kF32);
  EmbeddingBackward(ctx, dy, token, dtable);
  EXPECT_EQ(runtime::ToDoubles(dtable), (std::vector<double>{0, 0, 0, 1000, 1000, 1000}));
}

TEST(Embedding, BackwardHasTheSameBitsOnTwoThreads) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  std::vector<int32_t> token(3000);
  for (size_t t = 0; t < token.size(); ++t) token[t] = static_cast<int32_t>(t * t % 11);
  Tensor dy = Random(one, {3000, 100}, DType::kF32, 1);
  Tensor a = one.Zeros({11, 100}, DType::kF32), b = one.Zeros({11, 100}, DType::kF32);
  EmbeddingBackward(one, dy, token, a);
  EmbeddingBackward(two, dy, token, b);
  ExpectSameBits(a, b, "dtable");
}

TEST(Embedding, NamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Tensor table = ctx.Zeros({5, 7}, DType::kF32), dy = ctx.Zeros({2, 7}, DType::kF32);
  std::vector<int32_t> high = {0, 5}, negative = {-1, 0}, good = {0, 1};
  ExpectThrows<ShapeError>([&] { Embedding(ctx, table, high); },
                           {"[embedding]", "token 5 at position 1", "[0, 5)"});
  ExpectThrows<ShapeError>([&] { Embedding(ctx, table, negative); }, {"[embedding]", "token -1"});
  ExpectThrows<ShapeError>([&] { EmbeddingBackward(ctx, dy, high, table); }, {"token 5"});
  ExpectThrows<ShapeError>(
      [&] {
        EmbeddingBackward(ctx, ctx.Zeros({3, 7}, DType::kF32), good, table);
      },
      {"[embedding]", "dy", "[3, 7]", "[2, 7]"});
  ExpectThrows<ShapeError>(
      [&] {
        EmbeddingBackward(ctx, ctx.Zeros({2, 7}, DType::kBF16), good,
                          ctx.Zeros({5, 7}, DType::kBF16));
      },
      {"[embedding]", "dtable", "bf16", "f32"});
  EXPECT_EQ(Embedding(ctx, table, {}).shape(), (Shape{0, 7}));
}

}  // namespace
}  // namespace hone::kernels::testing
