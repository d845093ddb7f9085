// Linear layers that read the same x, together: what each does alone, with all that a layer may be
// told to leave out or put off.
#include <gtest/gtest.h>

#include "tests/model/layer_testing.h"

namespace hone::model {
namespace {

constexpr int64_t kIn = 144;

// Layers a (with a bias where told), b and c of one x.
struct Layers {
  Layers(Context& ctx, bool bias, DType dtype = DType::kF32, std::vector<std::string> frozen = {})
      : builder(ctx, {.dtype = dtype, .with_gradients = true, .frozen = std::move(frozen)}),
        a(builder, "a", kIn, 48, bias),
        b(builder, "b", kIn, 32, false),
        c(builder, "c", kIn, 32, false) {
    FillParameters(ctx, builder, 3);
    ZeroGradients(builder);
    x = RandomTensor(ctx, {7, kIn}, dtype, 1);
    for (int64_t out : {48, 32, 32}) dy.push_back(RandomTensor(ctx, {7, out}, dtype, out));
  }
  std::vector<Tensor> Forward(Context& ctx) const {
    return Linear::ForwardEach(ctx, x, {&a, &b, &c});
  }
  Tensor Backward(Context& ctx) const {
    return Linear::BackwardSum(ctx, {{&a, dy[0]}, {&b, dy[1]}, {&c, dy[2]}}, x);
  }

  ParameterBuilder builder;
  Linear a, b, c;
  Tensor x;
  std::vector<Tensor> dy;
};

class LinearLayers : public testing::TestWithParam<std::tuple<bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(All, LinearLayers, testing::Combine(testing::Bool(), testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) ? "Fp8" : "Wide") +
                                  (std::get<1>(info.param) ? "WithABias" : "");
                         });

TEST_P(LinearLayers, GiveWhatEachGivesAlone) {
  const auto [fp8, bias] = GetParam();
  Context ctx;
  ctx.fp8 = fp8;
  const Layers layers(ctx, bias), alone(ctx, bias);
  const std::vector<Tensor> y = layers.Forward(ctx);
  const std::vector<double> dx = ToDoubles(layers.Backward(ctx));
  std::vector<double> sum(dx.size());
  const Linear* each[] = {&alone.a, &alone.b, &alone.c};
  ASSERT_EQ(y.size(), std::size(each));
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_TRUE(SameBits(y[i], each[i]->Forward(ctx, alone.x))) << i;
    const std::vector<double> dx_i = ToDoubles(each[i]->Backward(ctx, alone.dy[i], alone.x));
    for (size_t j = 0; j < sum.size(); ++j) sum[j] += dx_i[j];
  }
  EXPECT_LE(RelativeError(dx, sum), 1e-6);
  ExpectSameGradients(layers.builder, alone.builder);
}

TEST(LinearLayers, GradientsAgreeWithFiniteDifferences) {
  Context ctx;
  const Layers layers(ctx, true, DType::kF64);
  auto loss = [&] {
    const std::vector<Tensor> y = layers.Forward(ctx);
    return Dot(y[0], layers.dy[0]) + Dot(y[1], layers.dy[1]) + Dot(y[2], layers.dy[2]);
  };
  ExpectGradient("x", layers.x, layers.Backward(ctx), loss);
  ExpectParameterGradients(layers.builder, loss);
}

TEST(LinearLayers, QueueTheirWeightGradientsAsOnePieceOfWork) {
  Context ctx;
  const Layers at_once(ctx, true), later(ctx, true);
  const Tensor dx = at_once.Backward(ctx);
  WeightGradientQueue queue;
  ctx.weight_gradients = &queue;
  EXPECT_TRUE(SameBits(later.Backward(ctx), dx));
  ASSERT_EQ(queue.size(), 1u);
  for (double g : ToDoubles(later.a.weight().gradient)) ASSERT_EQ(g, 0);
  queue.front()();
  ExpectSameGradients(later.builder, at_once.builder);
}

TEST(LinearLayers, LeaveOutWhatIsFrozen) {
  Context ctx;
  const Layers all(ctx, true);
  const Tensor dx = all.Backward(ctx);
  WeightGradientQueue queue;
  ctx.weight_gradients = &queue;
  for (const std::vector<std::string>& frozen :
       {std::vector<std::string>{"b"}, {"a.weight"}, {"a.bias", "c"}, {"a", "b", "c"}}) {
    const Layers some(ctx, true, DType::kF32, frozen);
    EXPECT_TRUE(SameBits(some.Backward(ctx), dx));
    ASSERT_EQ(queue.size(), frozen.size() < 3 ? 1u : 0u);
    for (auto& work : queue) work();
    queue.clear();
    for (size_t i = 0; i < all.builder.entries().size(); ++i) {
      const Parameter &p = *some.builder.entries()[i].parameter,
                      &q = *all.builder.entries()[i].parameter;
      EXPECT_EQ(p.gradient.defined(), p.spec.trainable) << p.spec.name;
      if (p.gradient.defined()) {
        EXPECT_TRUE(SameBits(p.gradient, q.gradient)) << p.spec.name;
      }
    }
  }
}

}  // namespace
}  // namespace hone::model
