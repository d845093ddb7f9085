// emulated: all
#include "kernels/moe_permute/moe_permute.h"

#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

constexpr int64_t kTokens = 6, kTopK = 3, kExperts = 5, kDim = 21;

// Expert 3 is chosen by no one.
const std::vector<int32_t> kIndex = {0, 1, 2, 1, 2, 4, 0, 2, 4, 0, 1, 4, 1, 2, 4, 0, 1, 2};

TEST(MoePermute, SortsByExpertThenToken) {
  Permutation p = MakePermutation(kIndex, kTopK, kExperts);
  EXPECT_EQ(p.offset_E, (std::vector<int64_t>{0, 4, 9, 14, 14, 18}));
  ASSERT_EQ(p.token_R.size(), kIndex.size());
  for (int64_t e = 0; e < kExperts; ++e) {
    for (int64_t r = p.offset_E[e] + 1; r < p.offset_E[e + 1]; ++r) {
      EXPECT_LT(p.token_R[r - 1], p.token_R[r]) << "row " << r;
    }
  }
  for (size_t i = 0; i < kIndex.size(); ++i) {
    int64_t r = p.row_TK[i];
    EXPECT_EQ(p.token_R[r], static_cast<int32_t>(i / kTopK));
    EXPECT_GE(r, p.offset_E[kIndex[i]]);
    EXPECT_LT(r, p.offset_E[kIndex[i] + 1]);
  }
}

TEST(MoePermute, RowsOfAnyLengthMatchDouble) {
  Context ctx(TestDevice());
  Permutation p = MakePermutation(kIndex, kTopK, kExperts);
  for (auto [dtype, tolerance] : {std::pair{DType::kF32, 1e-6}, std::pair{DType::kBF16, 8e-3}}) {
    for (int64_t dim : {3, 128, 1030, 4104}) {
      Tensor rows = Random(ctx, {kTokens * kTopK, dim}, dtype, 1);
      Tensor weight = Random(ctx, {kTokens, kTopK}, DType::kF32, 2);
      Tensor dy = Random(ctx, {kTokens, dim}, dtype, 3);
      std::vector<double> r = runtime::ToDoubles(rows), w = runtime::ToDoubles(weight);
      std::vector<double> g = runtime::ToDoubles(dy), y(kTokens * dim, 0), sum = y;
      std::vector<double> drows(r.size()), dweight(w.size(), 0);
      for (size_t i = 0; i < kIndex.size(); ++i) {
        for (int64_t d = 0; d < dim; ++d) {
          size_t row = p.row_TK[i] * dim + d, token = i / kTopK * dim + d;
          y[token] += w[i] * r[row];
          sum[token] += r[row];
          drows[row] = w[i] * g[token];
          dweight[i] += g[token] * r[row];
        }
      }
      ExpectClose(Unpermute(ctx, rows, weight, p), y, tolerance, "y");
      ExpectClose(Unpermute(ctx, rows, Tensor(), p), sum, tolerance, "plain sum");
      UnpermuteGradients gradients = UnpermuteBackward(ctx, dy, rows, weight, p);
      ExpectClose(gradients.drows_RD, drows, tolerance, "drows");
      ExpectClose(gradients.dweight_TK, dweight, 2e-6, "dweight");
      Tensor copied = Permute(ctx, dy, p);
      for (int64_t n = 0; n < copied.rows(); ++n) {
        ExpectSameBits(copied.Slice(n, n + 1), dy.Slice(p.token_R[n], p.token_R[n] + 1), "copy");
      }
    }
  }
}

TEST(MoePermute, UnpermuteWeighsAndSums) {
  Context ctx(TestDevice());
  Permutation p = MakePermutation(kIndex, kTopK, kExperts);
  for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-14}, std::pair{DType::kF32, 5e-7},
                                  std::pair{DType::kBF16, 4e-3}}) {
    DType acc = dtype == DType::kF64 ? dtype : DType::kF32;
    Tensor rows = Random(ctx, {kTokens * kTopK, kDim}, dtype, 1);
    Tensor weight = Random(ctx, {kTokens, kTopK}, acc, 2);
    std::vector<double> r = runtime::ToDoubles(rows), w = runtime::ToDoubles(weight);
    std::vector<double> want(kTokens * kDim, 0);
    for (size_t i = 0; i < kIndex.size(); ++i) {
      for (int64_t d = 0; d < kDim; ++d)
        want[i / kTopK * kDim + d] += w[i] * r[p.row_TK[i] * kDim + d];
    }
    ExpectClose(Unpermute(ctx, rows, weight, p), want, tolerance, "y");
  }
}

TEST(MoePermute, PermuteCopiesAndItsBackwardSums) {
  Context ctx(TestDevice());
  Permutation p = MakePermutation(kIndex, kTopK, kExperts);
  Tensor x = Random(ctx, {kTokens, kDim}, DType::kF64, 1);
  Tensor drows = Random(ctx, {kTokens * kTopK, kDim}, DType::kF64, 2);
  Tensor rows = Permute(ctx, x, p);
  for (int64_t r = 0; r < rows.rows(); ++r) {
    ExpectSameBits(rows.Slice(r, r + 1), x.Slice(p.token_R[r], p.token_R[r] + 1), "row");
  }
  Tensor dx = Unpermute(ctx, drows, Tensor(), p);
  auto loss = [&] { return WeightedSum(Permute(ctx, x, p), drows); };
  ExpectClose(dx, NumericGradient(x, loss), 1e-8, "dx");
}

TEST(MoePermute, UnpermuteBackwardMatchesFiniteDifferences) {
  Context ctx(TestDevice());
  Permutation p = MakePermutation(kIndex, kTopK, kExperts);
  Tensor rows = Random(ctx, {kTokens * kTopK, kDim}, DType::kF64, 1);
  Tensor weight = Random(ctx, {kTokens, kTopK}, DType::kF64, 2);
  Tensor dy = Random(ctx, {kTokens, kDim}, DType::kF64, 3);
  UnpermuteGradients g = UnpermuteBackward(ctx, dy, rows, weight, p);
  auto loss = [&] { return WeightedSum(Unpermute(ctx, rows, weight, p), dy); };
  ExpectClose(g.drows_RD, NumericGradient(rows, loss), 1e-8, "drows");
  ExpectClose(g.dweight_TK, NumericGradient(weight, loss), 1e-8, "dweight");
}

// A token's bits depend neither on its companions nor on the order in which it names its experts.
TEST(MoePermute, ATokensBitsAreItsOwn) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  int64_t tokens = 400, dim = 70;
  std::vector<int32_t> index;
  for (int64_t t = 0; t < tokens; ++t) {
    int32_t first = static_cast<int32_t>(t * 7 % kExperts);
    for (int32_t k = 0; k < kTopK; ++k)
      index.push_back((first + k) % static_cast<int32_t>(kExperts));
  }
  Tensor x = Random(one, {tokens, dim}, DType::kF32, 1);
  Tensor weight = Random(one, {tokens, kTopK}, DType::kF32, 2);
  Permutation p = MakePermutation(index, kTopK, kExperts);
  Tensor rows = OnHost(Permute(one, x, p)), weights = OnHost(weight);
  for (int64_t r = 0; r < rows.rows(); ++r) {  // an "expert" that gives each of its rows other bits
    float factor = static_cast<float>(index[0] + 1) / 3.0f * static_cast<float>(r % 5 + 1);
    for (int64_t d = 0; d < dim; ++d) rows.row<float>(r)[d] *= factor;
  }
  rows = OnDevice(one, rows);
  Tensor y = Unpermute(one, rows, weight, p);
  ExpectSameBits(Unpermute(two, rows, weight, p), y, "two threads");
  for (int64_t t : {0, 3, 399}) {
    // Alone, and with its experts named in reverse.
    std::vector<int32_t> own(index.begin() + t * kTopK, index.begin() + (t + 1) * kTopK);
    std::reverse(own.begin(), own.end());
    Permutation alone = MakePermutation(own, kTopK, kExperts);
    Tensor own_rows = one.Empty({kTopK, dim}, DType::kF32);
    Tensor own_weight = HostTensor({1, kTopK}, DType::kF32);
    for (int64_t k = 0; k < kTopK; ++k) {
      int64_t source = kTopK - 1 - k;
      CopyTo(rows.Slice(p.row_TK[t * kTopK + source], p.row_TK[t * kTopK + source] + 1),
             own_rows.Slice(alone.row_TK[k], alone.row_TK[k] + 1));
      own_weight.data<float>()[k] = weights.row<float>(t)[source];
    }
    ExpectSameBits(Unpermute(one, own_rows, OnDevice(one, own_weight), alone), y.Slice(t, t + 1),
                   "one token alone");
  }
  UnpermuteGradients a = UnpermuteBackward(one, y, rows, weight, p);
  UnpermuteGradients b = UnpermuteBackward(two, y, rows, weight, p);
  ExpectSameBits(a.drows_RD, b.drows_RD, "drows on two threads");
  ExpectSameBits(a.dweight_TK, b.dweight_TK, "dweight on two threads");
}

TEST(MoePermute, AcceptsNoTokens) {
  Context ctx(TestDevice());
  Permutation p = MakePermutation({}, kTopK, kExperts);
  EXPECT_EQ(p.offset_E, std::vector<int64_t>(kExperts + 1, 0));
  Tensor x = ctx.Empty({0, kDim}, DType::kF32), weight = ctx.Empty({0, kTopK}, DType::kF32);
  Tensor rows = Permute(ctx, x, p);
  EXPECT_EQ(rows.shape(), (Shape{0, kDim}));
  EXPECT_EQ(Unpermute(ctx, rows, weight, p).shape(), (Shape{0, kDim}));
  EXPECT_EQ(Unpermute(ctx, rows, Tensor(), p).shape(), (Shape{0, kDim}));
  EXPECT_EQ(UnpermuteBackward(ctx, x, rows, weight, p).dweight_TK.shape(), (Shape{0, kTopK}));
}

TEST(MoePermute, NamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  std::vector<int32_t> bad = {0, 5}, negative = {-1, 0}, odd = {0, 1, 2};
  ExpectThrows<ShapeError>([&] { MakePermutation(bad, 1, 5); },
                           {"[moe_permute]", "expert 5", "token 1", "[0, 5)"});
  ExpectThrows<ShapeError>([&] { MakePermutation(negative, 2, 5); },
                           {"[moe_permute]", "expert -1"});
  ExpectThrows<ShapeError>([&] { MakePermutation(odd, 2, 5); },
                           {"[moe_permute]", "3", "top_k = 2"});
  Permutation p = MakePermutation(kIndex, kTopK, kExperts);
  ExpectThrows<ShapeError>(
      [&] {
        Permute(ctx, ctx.Zeros({5, kDim}, DType::kF32), p);
      },
      {"[moe_permute]", "18 rows", "5 tokens"});
  ExpectThrows<ShapeError>(
      [&] {
        Unpermute(ctx, ctx.Zeros({17, kDim}, DType::kF32), Tensor(), p);
      },
      {"[moe_permute]", "[17, 21]", "18 rows"});
  Tensor rows = ctx.Zeros({18, kDim}, DType::kF32);
  ExpectThrows<ShapeError>(
      [&] {
        Unpermute(ctx, rows, ctx.Zeros({4, 3}, DType::kF32), p);
      },
      {"[moe_permute]", "18 rows", "4 tokens with 3"});
  ExpectThrows<ShapeError>(
      [&] {
        Unpermute(ctx, rows, ctx.Zeros({6, 3}, DType::kF64), p);
      },
      {"[moe_permute]", "weight", "f64", "f32"});
  ExpectThrows<ShapeError>(
      [&] {
        UnpermuteBackward(ctx, ctx.Zeros({6, 20}, DType::kF32), rows,
                          ctx.Zeros({6, 3}, DType::kF32), p);
      },
      {"[moe_permute]", "dy", "[6, 20]", "[6, 21]"});
}

}  // namespace
}  // namespace hone::kernels::testing
