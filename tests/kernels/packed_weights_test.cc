// Products with weights that are kept packed: the bits of those that are not, for any number of
// rows and threads; what was computed is never taken for a weight, and Clear forgets.
#include "runtime/packed_weights.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/fp8/fp8.h"
#include "kernels/linear/linear.h"
#include "runtime/philox.h"

namespace hone::kernels {
namespace {

Tensor Random(Context& ctx, runtime::Shape shape, uint64_t seed) {
  Tensor t = ctx.Empty(shape, DType::kF32);
  RandomStream stream{seed};
  for (int64_t i = 0; i < t.size(); ++i) {
    t.data<float>()[i] = static_cast<float>(stream.Uniform(static_cast<uint64_t>(i))) - 0.5f;
  }
  return t;
}

bool SameBits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

TEST(PackedWeights, ProductsHaveTheSameBits) {
  for (int threads : {1, 2}) {
    Context ctx(Device::Cpu(), threads);
    for (auto [N, K] : {std::pair<int64_t, int64_t>{33, 7}, {96, 300}, {1030, 513}}) {
      Tensor w = Random(ctx, {N, K}, 1), bias = Random(ctx, {N}, 2);
      runtime::PackedWeights packed;
      packed.Register(w);
      for (int64_t rows : {1, 14, 31, 200}) {
        Tensor x = Random(ctx, {rows, K}, 3);
        Tensor want = Linear(ctx, x, w, &bias);
        ctx.packed_weights = &packed;
        Tensor got = Linear(ctx, x, w, &bias);
        Tensor part = Linear(ctx, x, w.Slice(1, N));
        ctx.packed_weights = nullptr;
        EXPECT_TRUE(SameBits(got, want)) << rows << " rows, " << N << " by " << K;
        EXPECT_TRUE(SameBits(part, Linear(ctx, x, w.Slice(1, N)))) << "a matrix inside a weight";
      }
    }
  }
}

TEST(PackedWeights, ServeLayersOfOneInputBesideOthers) {
  Context ctx(Device::Cpu(), 2);
  const Tensor kept = Random(ctx, {40, 20}, 1), other = Random(ctx, {33, 20}, 2),
               bias = Random(ctx, {40}, 3), x = Random(ctx, {30, 20}, 4);
  const std::vector<LinearWeight> layers = {{other}, {kept, &bias}, {other}};
  const std::vector<Tensor> want = LinearEach(ctx, x, layers);
  runtime::PackedWeights packed;
  packed.Register(kept);
  ctx.packed_weights = &packed;
  LinearEach(ctx, x, layers);
  runtime::FillZero(kept.raw(), kept.device(), kept.bytes(), nullptr);
  const std::vector<Tensor> got = LinearEach(ctx, x, layers);
  for (size_t i = 0; i < layers.size(); ++i) EXPECT_TRUE(SameBits(got[i], want[i])) << i;
}

TEST(PackedWeights, KeepsWeightsOnlyAndForgets) {
  Context ctx;
  Tensor w = Random(ctx, {40, 20}, 1), other = Random(ctx, {40, 20}, 2);
  Tensor x = Random(ctx, {3, 20}, 3);
  runtime::PackedWeights packed;
  packed.Register(w);
  ctx.packed_weights = &packed;
  for (Tensor matrix : {other, w}) {
    Tensor before = Linear(ctx, x, matrix);
    matrix.data<float>()[0] += 1;
    bool noticed = !SameBits(Linear(ctx, x, matrix), before);
    EXPECT_EQ(noticed, matrix.raw() == other.raw()) << "a weight is read from where it is kept";
  }
  Tensor stale = Linear(ctx, x, w);
  packed.Clear();
  EXPECT_FALSE(SameBits(Linear(ctx, x, w), stale));
}

TEST(PackedWeights, KeepsFp8OfAMatrixAndOfItsTranspose) {
  Context ctx;
  Tensor w = Random(ctx, {48, 48}, 1), x = Random(ctx, {3, 48}, 2);
  const Tensor y = Fp8Linear(ctx, x, w), dx = Fp8LinearInputGradient(ctx, x, w);
  runtime::PackedWeights packed(runtime::PackedWeights::Form::kFp8);
  packed.Register(w);
  ctx.packed_weights = &packed;
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(SameBits(Fp8Linear(ctx, x, w), y));
    EXPECT_TRUE(SameBits(Fp8LinearInputGradient(ctx, x, w), dx));
    w.data<float>()[0] += 1;  // nobody looks
  }
  const auto usage = ctx.allocator()->Usage();
  EXPECT_EQ(usage.live[static_cast<size_t>(MemoryCategory::kWeights)], 2 * Fp8BlocksBytes(48, 48));
  packed.Clear();
  EXPECT_FALSE(SameBits(Fp8Linear(ctx, x, w), y));
  EXPECT_FALSE(SameBits(Fp8LinearInputGradient(ctx, x, w), dx));
  const Tensor plain = Linear(ctx, x, w);
  w.data<float>()[0] += 1;
  EXPECT_FALSE(SameBits(Linear(ctx, x, w), plain)) << "these are no panels";
}

}  // namespace
}  // namespace hone::kernels
