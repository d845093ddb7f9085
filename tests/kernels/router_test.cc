// emulated: all
#include "kernels/router/router.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

using Kind = RouterConfig::Kind;

RouterConfig FromFixture(const nlohmann::json& c) {
  RouterConfig config;
  config.kind = c["kind"] == "softmax" ? Kind::kSoftmaxTopK : Kind::kSigmoidGroups;
  config.experts = c["experts"];
  config.top_k = c["top_k"];
  config.groups = c["groups"];
  config.top_groups = c["top_groups"];
  config.normalize = c["normalize"];
  config.scale = c["scale"];
  return config;
}

RouterConfig Softmax(int64_t experts, int64_t top_k) {
  RouterConfig config;
  config.experts = experts;
  config.top_k = top_k;
  return config;
}

RouterConfig Groups(int64_t experts, int64_t top_k, int64_t groups, int64_t top_groups) {
  RouterConfig config = Softmax(experts, top_k);
  config.kind = Kind::kSigmoidGroups;
  config.groups = groups;
  config.top_groups = top_groups;
  config.scale = 2.5;
  return config;
}

// Logits and bias of a fixture case; the bias is null where the kind has none.
struct Case {
  Case(Context& ctx, const nlohmann::json& c, DType dtype) : config(FromFixture(c)) {
    int64_t tokens = c["tokens"];
    logits = Make(ctx, {tokens, config.experts}, c["logits"], dtype);
    bias = Make(ctx, {config.experts}, c["bias"], DType::kF32);
  }
  const Tensor* bias_ptr() const { return config.kind == Kind::kSoftmaxTopK ? nullptr : &bias; }
  RouterConfig config;
  Tensor logits, bias;
};

TEST(Router, ChoosesAndWeighsAsThePaperSays) {
  Context ctx(TestDevice());
  for (const nlohmann::json& c : Fixture("router")) {
    SCOPED_TRACE(fmt::format("{} experts, top {}", c["experts"].get<int>(), c["top_k"].get<int>()));
    for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-13}, std::pair{DType::kF32, 1e-6}}) {
      Case k(ctx, c, dtype);
      Routing routing = Route(ctx, k.logits, k.bias_ptr(), k.config);
      EXPECT_EQ(routing.index_TK, c["index"].get<std::vector<int32_t>>());
      ExpectClose(routing.weight_TK, c["weight"].get<std::vector<double>>(), tolerance, "weight");
      ExpectClose(routing.score_TE, c["score"].get<std::vector<double>>(), tolerance, "score");
    }
  }
}

// Chosen experts of one token in double: the largest of s + b among the allowed groups.
std::vector<int32_t> Chosen(const std::vector<double>& score, const std::vector<double>& bias,
                            const RouterConfig& c) {
  auto largest = [](const std::vector<double>& value, int64_t count) {
    std::vector<int32_t> order(value.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return value[a] > value[b]; });
    order.resize(count);
    std::sort(order.begin(), order.end());
    return order;
  };
  std::vector<double> choice = score, group(c.groups);
  int64_t size = c.experts / c.groups;
  for (size_t e = 0; e < choice.size(); ++e) choice[e] += bias[e];
  for (int64_t g = 0; g < c.groups; ++g) {
    std::vector<double> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    group[g] = members[0] + members[1];
  }
  std::vector<int32_t> kept = largest(group, c.top_groups);
  for (int64_t e = 0; e < c.experts; ++e) {
    if (!std::binary_search(kept.begin(), kept.end(), static_cast<int32_t>(e / size))) {
      choice[e] = -1e300;
    }
  }
  return largest(choice, c.top_k);
}

TEST(Router, ManyExpertsMatchDouble) {
  Context ctx(TestDevice());
  int64_t tokens = 30;
  RouterConfig softmax = Softmax(100, 40), groups = Groups(72, 8, 8, 3),
               many = Groups(160, 6, 80, 9);
  for (const RouterConfig& c : {softmax, groups, many}) {
    bool sigmoid = c.kind == Kind::kSigmoidGroups;
    for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-12}, std::pair{DType::kF32, 3e-6}}) {
      Tensor logits = Random(ctx, {tokens, c.experts}, dtype, 1, 2.0);
      Tensor bias = Random(ctx, {c.experts}, DType::kF32, 2, 0.1);
      std::vector<double> z = runtime::ToDoubles(logits), b(c.experts, 0.0), weights, scores;
      if (sigmoid) b = runtime::ToDoubles(bias);
      std::vector<int32_t> want;
      for (int64_t t = 0; t < tokens; ++t) {
        std::vector<double> s;
        double total = 0, chosen = 0;
        for (int64_t e = 0; e < c.experts; ++e) {
          double x = z[t * c.experts + e];
          total += s.emplace_back(sigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x));
        }
        for (double& v : s) v /= sigmoid ? 1 : total;
        scores.insert(scores.end(), s.begin(), s.end());
        std::vector<int32_t> index = Chosen(s, b, c);
        for (int32_t e : index) chosen += s[e];
        for (int32_t e : index) weights.push_back(s[e] / chosen * c.scale);
        want.insert(want.end(), index.begin(), index.end());
      }
      Routing routing = Route(ctx, logits, sigmoid ? &bias : nullptr, c);
      EXPECT_EQ(routing.index_TK, want);
      ExpectClose(routing.weight_TK, weights, tolerance, "weight");
      ExpectClose(routing.score_TE, scores, tolerance, "score");
    }
    Tensor logits = Random(ctx, {3, c.experts}, DType::kF64, 4);
    Routing routing = Route(ctx, logits, nullptr, c);
    Tensor dweight = Random(ctx, routing.weight_TK.shape(), DType::kF64, 5);
    auto loss = [&] {
      return WeightedSum(Route(ctx, logits, nullptr, c, routing.index_TK).weight_TK, dweight);
    };
    ExpectClose(RouteBackward(ctx, dweight, nullptr, routing, c), NumericGradient(logits, loss),
                1e-7, "dlogits");
  }
}

TEST(Router, BackwardAndBalanceLossEqualAutograd) {
  Context ctx(TestDevice());
  for (const nlohmann::json& c : Fixture("router")) {
    SCOPED_TRACE(fmt::format("{} experts, top {}", c["experts"].get<int>(), c["top_k"].get<int>()));
    for (auto [dtype, tolerance] : {std::pair{DType::kF64, 1e-12}, std::pair{DType::kF32, 2e-6}}) {
      Case k(ctx, c, dtype);
      Routing routing = Route(ctx, k.logits, k.bias_ptr(), k.config);
      Tensor dscore = ctx.Zeros(k.logits.shape(), dtype);
      double loss =
          SequenceBalanceLoss(ctx, routing, c["cu_seqlens"].get<std::vector<int32_t>>(),
                              c["sequence_weight"].get<std::vector<double>>(), k.config, &dscore);
      EXPECT_NEAR(loss, c["balance"].get<double>(), tolerance * c["balance"].get<double>());
      Tensor dweight = Make(ctx, routing.weight_TK.shape(), c["dweight"], dtype);
      ExpectClose(RouteBackward(ctx, dweight, &dscore, routing, k.config),
                  c["dlogits"].get<std::vector<double>>(), tolerance, "dlogits");
    }
  }
}

TEST(Router, BackwardMatchesFiniteDifferences) {
  Context ctx(TestDevice());
  for (const nlohmann::json& c : Fixture("router")) {
    Case k(ctx, c, DType::kF64);
    Routing routing = Route(ctx, k.logits, k.bias_ptr(), k.config);
    Tensor dweight = Random(ctx, routing.weight_TK.shape(), DType::kF64, 9);
    Tensor dscore = Random(ctx, routing.score_TE.shape(), DType::kF64, 10);
    std::vector<int32_t> cu_seqlens = c["cu_seqlens"];
    std::vector<double> weight = c["sequence_weight"];
    auto loss = [&] {  // replayed: a finite difference must not change the choice
      Routing r = Route(ctx, k.logits, k.bias_ptr(), k.config, routing.index_TK);
      return WeightedSum(r.weight_TK, dweight) + WeightedSum(r.score_TE, dscore) +
             SequenceBalanceLoss(ctx, r, cu_seqlens, weight, k.config, nullptr);
    };
    Tensor total = ctx.Clone(dscore);
    SequenceBalanceLoss(ctx, routing, cu_seqlens, weight, k.config, &total);
    ExpectClose(RouteBackward(ctx, dweight, &total, routing, k.config),
                NumericGradient(k.logits, loss), 1e-8, "dlogits");
    auto weights_only = [&] {
      return WeightedSum(Route(ctx, k.logits, k.bias_ptr(), k.config, routing.index_TK).weight_TK,
                         dweight);
    };
    ExpectClose(RouteBackward(ctx, dweight, nullptr, routing, k.config),
                NumericGradient(k.logits, weights_only), 1e-8, "dlogits without a score gradient");
  }
}

TEST(Router, TiesGoToTheLowerExpertAndGroup) {
  Context ctx(TestDevice());
  Tensor logits = ctx.Zeros({1, 8}, DType::kF32);
  EXPECT_EQ(Route(ctx, logits, nullptr, Softmax(8, 3)).index_TK, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(Route(ctx, logits, nullptr, Groups(8, 3, 4, 2)).index_TK,
            (std::vector<int32_t>{0, 1, 2}));
}

// With a bias so negative that s + b < 0 everywhere, a mask of 0 would choose from unselected
// groups.
TEST(Router, UnselectedGroupsAreNeverChosen) {
  Context ctx(TestDevice());
  Tensor logits = Make(ctx, {1, 6}, {0, 0, 3, 3, 1, 1}, DType::kF32);
  Tensor bias = Make(ctx, {6}, std::vector<double>(6, -5.0), DType::kF32);
  EXPECT_EQ(Route(ctx, logits, &bias, Groups(6, 2, 3, 1)).index_TK, (std::vector<int32_t>{2, 3}));
}

// The bias moves the choice, never the weights.
TEST(Router, BiasChoosesButDoesNotWeigh) {
  Context ctx(TestDevice());
  Tensor logits = Make(ctx, {1, 4}, {2, 1, 0, -1}, DType::kF32);
  Tensor bias = Make(ctx, {4}, {-10, 0, 0, 10}, DType::kF32);
  Routing routing = Route(ctx, logits, &bias, Groups(4, 2, 1, 1));
  EXPECT_EQ(routing.index_TK, (std::vector<int32_t>{1, 3}));
  auto sigmoid = [](double z) { return 1 / (1 + std::exp(-z)); };
  double sum = sigmoid(1) + sigmoid(-1);
  ExpectClose(routing.weight_TK,
              std::vector<double>{2.5 * sigmoid(1) / sum, 2.5 * sigmoid(-1) / sum}, 1e-6, "weight");
}

TEST(Router, ReplaysARecordedChoice) {
  Context ctx(TestDevice());
  Tensor logits = Random(ctx, {3, 6}, DType::kF32, 1);
  RouterConfig config = Softmax(6, 2);
  std::vector<int32_t> replay = {5, 0, 2, 3, 1, 4};
  Routing routing = Route(ctx, logits, nullptr, config, replay);
  EXPECT_EQ(routing.index_TK, (std::vector<int32_t>{0, 5, 2, 3, 1, 4}));
  std::vector<double> score = runtime::ToDoubles(routing.score_TE);
  double s0 = score[0], s5 = score[5];
  EXPECT_NEAR(runtime::ToDoubles(routing.weight_TK)[0], s0 / (s0 + s5), 1e-6);
  Routing natural = Route(ctx, logits, nullptr, config);
  Routing again = Route(ctx, logits, nullptr, config, natural.index_TK);
  ExpectSameBits(again.weight_TK, natural.weight_TK, "weights of the natural choice, replayed");
}

TEST(Router, ATokensBitsAreItsOwn) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  Tensor bias = Random(one, {24}, DType::kF32, 2, 0.1);
  for (RouterConfig config : {Softmax(24, 5), Groups(24, 5, 4, 2)}) {
    const Tensor* b = config.kind == Kind::kSigmoidGroups ? &bias : nullptr;
    Tensor logits = Random(one, {500, 24}, DType::kF32, 1);
    Routing r = Route(one, logits, b, config), r2 = Route(two, logits, b, config);
    EXPECT_EQ(r.index_TK, r2.index_TK);
    ExpectSameBits(r.weight_TK, r2.weight_TK, "weights on two threads");
    Tensor dweight = Random(one, {500, 5}, DType::kF32, 3);
    Tensor dscore = one.Zeros({500, 24}, DType::kF32), dscore2 = one.Zeros({500, 24}, DType::kF32);
    std::vector<int32_t> cu = {0, 200, 200, 500};
    std::vector<double> weight = {1, 1, 1};
    EXPECT_EQ(SequenceBalanceLoss(one, r, cu, weight, config, &dscore),
              SequenceBalanceLoss(two, r, cu, weight, config, &dscore2));
    ExpectSameBits(dscore, dscore2, "dscore on two threads");
    ExpectSameBits(RouteBackward(one, dweight, &dscore, r, config),
                   RouteBackward(two, dweight, &dscore, r, config), "dlogits on two threads");
    Routing alone = Route(one, logits.Slice(77, 78), b, config);
    ExpectSameBits(alone.weight_TK, r.weight_TK.Slice(77, 78), "one token alone");
    ExpectSameBits(alone.score_TE, r.score_TE.Slice(77, 78), "one token alone");
  }
}

TEST(Router, AcceptsNoTokens) {
  Context ctx(TestDevice());
  Tensor logits = ctx.Empty({0, 8}, DType::kF32);
  RouterConfig config = Groups(8, 2, 2, 1);
  Routing routing = Route(ctx, logits, nullptr, config);
  EXPECT_EQ(routing.weight_TK.shape(), (Shape{0, 2}));
  EXPECT_EQ(RouteBackward(ctx, routing.weight_TK, nullptr, routing, config).shape(), (Shape{0, 8}));
  std::vector<int32_t> cu = {0};
  EXPECT_EQ(SequenceBalanceLoss(ctx, routing, cu, {}, config, nullptr), 0);
}

TEST(Router, NamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  Tensor logits = ctx.Zeros({2, 6}, DType::kF32);
  auto route = [&](RouterConfig c, std::vector<int32_t> replay = {}) {
    Route(ctx, logits, nullptr, c, replay);
  };
  ExpectThrows<ConfigError>([&] { route(Softmax(6, 7)); }, {"[router]", "top_k = 7", "6"});
  ExpectThrows<ConfigError>([&] { route(Groups(6, 2, 4, 2)); },
                            {"[router]", "6 experts", "4 groups"});
  ExpectThrows<ConfigError>([&] { route(Groups(6, 2, 3, 4)); }, {"[router]", "top_groups = 4"});
  ExpectThrows<ConfigError>([&] { route(Groups(6, 3, 3, 1)); }, {"[router]", "top_k = 3"});
  ExpectThrows<ShapeError>([&] { route(Softmax(5, 2)); }, {"[router]", "[2, 6]", "5"});
  ExpectThrows<ShapeError>([&] { route(Softmax(6, 2), {0, 1, 2}); }, {"[router]", "3 replayed"});
  ExpectThrows<ShapeError>(
      [&] {
        route(Softmax(6, 2), {0, 1, 2, 6});
      },
      {"[router]", "token 1", "6"});
  ExpectThrows<ShapeError>(
      [&] {
        route(Softmax(6, 2), {0, 1, 4, 4});
      },
      {"[router]", "expert 4 twice", "token 1"});
  Tensor bias = ctx.Zeros({6}, DType::kF32), short_bias = ctx.Zeros({5}, DType::kF32);
  ExpectThrows<ShapeError>([&] { Route(ctx, logits, &bias, Softmax(6, 2)); }, {"[router]", "bias"});
  ExpectThrows<ShapeError>([&] { Route(ctx, logits, &short_bias, Groups(6, 2, 1, 1)); },
                           {"[router]", "bias", "[5]", "[6]"});
  ExpectThrows<ShapeError>(
      [&] {
        Route(ctx, ctx.Zeros({2, 6}, DType::kBF16), nullptr, Softmax(6, 2));
      },
      {"[router]", "bf16"});
  Routing routing = Route(ctx, logits, nullptr, Softmax(6, 2));
  ExpectThrows<ShapeError>(
      [&] {
        RouteBackward(ctx, ctx.Zeros({2, 3}, DType::kF32), nullptr, routing, Softmax(6, 2));
      },
      {"[router]", "dweight", "[2, 3]", "[2, 2]"});
  std::vector<int32_t> cu = {0, 1};
  std::vector<double> one = {1}, two = {1, 1};
  ExpectThrows<ShapeError>(
      [&] { SequenceBalanceLoss(ctx, routing, cu, one, Softmax(6, 2), nullptr); },
      {"[router]", "[0, 1)", "2 tokens"});
  ExpectThrows<ShapeError>(
      [&] { SequenceBalanceLoss(ctx, routing, cu, two, Softmax(6, 2), nullptr); },
      {"[router]", "2 sequence offsets", "2 sequence weights"});
}

}  // namespace
}  // namespace hone::kernels::testing
