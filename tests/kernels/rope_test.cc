// emulated: all
#include "kernels/rope/rope.h"

#include <numeric>

#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

RopeConfig FromFixture(const nlohmann::json& c) {
  RopeConfig config;
  config.dim = c["dim"];
  config.theta = c["theta"];
  std::string kind = c["kind"];
  using Scaling = RopeConfig::Scaling;
  config.scaling = kind == "linear"   ? Scaling::kLinear
                   : kind == "llama3" ? Scaling::kLlama3
                   : kind == "yarn"   ? Scaling::kYarn
                                      : Scaling::kNone;
  const nlohmann::json& s = c["scaling"];
  config.factor = s.value("factor", config.factor);
  config.original_max_position = s.value("original_max_position_embeddings", int64_t{0});
  config.beta_fast = s.value("beta_fast", config.beta_fast);
  config.beta_slow = s.value("beta_slow", config.beta_slow);
  config.low_freq_factor = s.value("low_freq_factor", config.low_freq_factor);
  config.high_freq_factor = s.value("high_freq_factor", config.high_freq_factor);
  config.attention_factor = s.value("attention_factor", config.attention_factor);
  config.mscale = s.value("mscale", config.mscale);
  config.mscale_all_dim = s.value("mscale_all_dim", config.mscale_all_dim);
  config.truncate = s.value("truncate", config.truncate);
  return config;
}

RopeTable SmallTable(Context& ctx, int64_t dim, DType dtype, int64_t positions = 64) {
  RopeConfig config;
  config.dim = dim;
  return MakeRopeTable(ctx, config, positions, dtype);
}

// Position 1 shows a pair's frequency as an angle and the attention factor as a length;
// transformers computes in f32, so agreement is to f32's accuracy.
TEST(Rope, FrequenciesEqualTransformers) {
  Context ctx(TestDevice());
  for (const nlohmann::json& c : Fixture("rope")) {
    SCOPED_TRACE(c["kind"].get<std::string>() + " " + c["scaling"].dump());
    RopeTable table = MakeRopeTable(ctx, FromFixture(c), 2, DType::kF64);
    Tensor cosines = OnHost(table.cos_PR), sines = OnHost(table.sin_PR);
    ASSERT_EQ(table.cos_PR.cols(), static_cast<int64_t>(c["frequency"].size()));
    for (int64_t i = 0; i < table.cos_PR.cols(); ++i) {
      double cos = cosines.row<double>(1)[i], sin = sines.row<double>(1)[i];
      double want = c["frequency"][i];
      EXPECT_NEAR(std::atan2(sin, cos), want, 2e-6 * want) << "pair " << i;
      EXPECT_NEAR(std::hypot(sin, cos), c["factor"].get<double>(), 1e-12) << "pair " << i;
    }
    EXPECT_NEAR(YarnSoftmaxFactor(FromFixture(c)), c["softmax_factor"].get<double>(), 1e-12);
  }
}

TEST(Rope, TableIsComputedInDouble) {
  Context ctx(TestDevice());
  RopeTable table = SmallTable(ctx, 8, DType::kBF16, 40000);
  EXPECT_EQ(table.cos_PR.dtype(), DType::kF32);
  Tensor cosines = OnHost(table.cos_PR), sines = OnHost(table.sin_PR);
  for (int64_t p : {0, 1, 39999}) {
    for (int64_t i = 0; i < 4; ++i) {
      double angle = static_cast<double>(p) / std::pow(10000.0, static_cast<double>(i) / 4);
      EXPECT_NEAR(cosines.row<float>(p)[i], std::cos(angle), 1e-7) << p << " " << i;
      EXPECT_NEAR(sines.row<float>(p)[i], std::sin(angle), 1e-7) << p << " " << i;
    }
  }
}

TEST(Rope, RotatesThePairsOfEachForm) {
  Context ctx(TestDevice());
  int64_t dim = 6;
  RopeTable table = SmallTable(ctx, dim, DType::kF64);
  std::vector<int32_t> position = {5, 0, 33};
  for (RopeForm form : {RopeForm::kRotateHalf, RopeForm::kInterleaved}) {
    Tensor x = Random(ctx, {3, 2, dim}, DType::kF64, 1), y = ctx.Clone(x);
    Rope(ctx, y, position, table, form);
    x = OnHost(x), y = OnHost(y);
    for (int64_t r = 0; r < x.rows(); ++r) {
      for (int64_t i = 0; i < dim / 2; ++i) {
        bool half = form == RopeForm::kRotateHalf;
        int64_t first = half ? i : 2 * i, second = half ? i + dim / 2 : 2 * i + 1;
        double angle = position[r / 2] / std::pow(10000.0, 2.0 * static_cast<double>(i) / dim);
        double a = x.row<double>(r)[first], b = x.row<double>(r)[second];
        EXPECT_NEAR(y.row<double>(r)[first], a * std::cos(angle) - b * std::sin(angle), 1e-13);
        EXPECT_NEAR(y.row<double>(r)[second], b * std::cos(angle) + a * std::sin(angle), 1e-13);
      }
    }
  }
}

TEST(Rope, InverseIsTheBackward) {
  Context ctx(TestDevice());
  RopeConfig config;
  config.dim = 8;
  config.scaling = RopeConfig::Scaling::kYarn;  // its factor on cos and sin is part of the gradient
  config.factor = 4;
  config.original_max_position = 32;
  RopeTable table = MakeRopeTable(ctx, config, 64, DType::kF64);
  std::vector<int32_t> position = {0, 1, 17, 63};
  for (RopeForm form : {RopeForm::kRotateHalf, RopeForm::kInterleaved}) {
    Tensor x = Random(ctx, {4, 3, 8}, DType::kF64, 1), dy = Random(ctx, {4, 3, 8}, DType::kF64, 2);
    Tensor dx = ctx.Clone(dy);
    Rope(ctx, dx, position, table, form, true);
    auto loss = [&] {
      Tensor y = ctx.Clone(x);
      Rope(ctx, y, position, table, form);
      return WeightedSum(y, dy);
    };
    ExpectClose(dx, NumericGradient(x, loss), 1e-8, "dx");
  }
}

TEST(Rope, InverseUndoesAPlainRotation) {
  Context ctx(TestDevice());
  RopeTable table = SmallTable(ctx, 10, DType::kF64);
  Tensor x = Random(ctx, {4, 2, 10}, DType::kF64, 1), y = ctx.Clone(x);
  std::vector<int32_t> position = {3, 9, 0, 50};
  Rope(ctx, y, position, table, RopeForm::kInterleaved);
  Rope(ctx, y, position, table, RopeForm::kInterleaved, true);
  ExpectClose(y, x, 1e-14, "x");
}

TEST(Rope, ChangesOnlyTheRotaryColumns) {
  Context ctx(TestDevice());
  Tensor wide = Random(ctx, {3, 2, 20}, DType::kF32, 1), before = ctx.Clone(wide);
  Tensor rotary = ctx.Clone(wide.Columns(12, 20));
  std::vector<int32_t> position = {4, 5, 6};
  RopeTable table = SmallTable(ctx, 8, DType::kF32);
  Rope(ctx, wide.Columns(12, 20), position, table, RopeForm::kInterleaved);
  Rope(ctx, rotary, position, table, RopeForm::kInterleaved);
  ExpectSameBits(wide.Columns(0, 12), before.Columns(0, 12), "the other columns");
  ExpectSameBits(wide.Columns(12, 20), rotary, "the rotary columns");
}

TEST(Rope, LowPrecisionMatchesDouble) {
  Context ctx(TestDevice());
  std::vector<int32_t> position = {7, 60};
  for (auto [dtype, tolerance] : {std::pair{DType::kF32, 3e-7}, std::pair{DType::kBF16, 4e-3}}) {
    for (RopeForm form : {RopeForm::kRotateHalf, RopeForm::kInterleaved}) {
      for (int64_t dim : {34, 64, 128}) {
        Tensor x = Random(ctx, {2, 3, dim}, dtype, 1);
        Tensor wide = Make(ctx, x.shape(), runtime::ToDoubles(x), DType::kF64);
        Rope(ctx, x, position, SmallTable(ctx, dim, dtype), form);
        Rope(ctx, wide, position, SmallTable(ctx, dim, DType::kF64), form);
        ExpectClose(x, wide, tolerance, fmt::format("x, dim {}", dim));
      }
    }
  }
}

TEST(Rope, ATokensBitsAreItsOwn) {
  Context one(TestDevice()), two(TestDevice(), 2, one.allocator());
  RopeTable table = SmallTable(one, 18, DType::kF32, 600);
  std::vector<int32_t> position(600);
  std::iota(position.begin(), position.end(), 0);
  for (RopeForm form : {RopeForm::kRotateHalf, RopeForm::kInterleaved}) {
    Tensor x = Random(one, {600, 4, 18}, DType::kF32, 1), y = one.Clone(x), z = one.Clone(x);
    Rope(one, y, position, table, form);
    Rope(two, z, position, table, form);
    ExpectSameBits(z, y, "two threads");
    Tensor row = one.Clone(x.Slice(311, 312));
    Rope(one, row, std::span(position).subspan(311, 1), table, form);
    ExpectSameBits(row, y.Slice(311, 312), "one token alone");
  }
}

TEST(Rope, NamesWhatDoesNotFit) {
  Context ctx(TestDevice());
  RopeTable table = SmallTable(ctx, 8, DType::kF32, 10);
  Tensor x = ctx.Zeros({2, 3, 8}, DType::kF32);
  auto rotate = [&](const Tensor& t, std::vector<int32_t> position) {
    Rope(ctx, t, position, table, RopeForm::kRotateHalf);
  };
  ExpectThrows<ShapeError>([&] { rotate(x, {0, 10}); }, {"[rope]", "position 10", "[0, 10)"});
  ExpectThrows<ShapeError>([&] { rotate(x, {-1, 0}); }, {"[rope]", "position -1"});
  ExpectThrows<ShapeError>([&] { rotate(x, {0}); }, {"[rope]", "1 positions", "2 tokens"});
  ExpectThrows<ShapeError>(
      [&] {
        rotate(ctx.Zeros({2, 3, 6}, DType::kF32), {0, 0});
      },
      {"[rope]", "4 pairs", "dim 6"});
  ExpectThrows<ShapeError>(
      [&] {
        rotate(ctx.Zeros({2, 3, 8}, DType::kF64), {0, 0});
      },
      {"[rope]", "cos", "f32", "f64"});
  rotate(ctx.Zeros({0, 3, 8}, DType::kF32), {});
  RopeConfig config;
  config.dim = 7;
  ExpectThrows<ConfigError>([&] { MakeRopeTable(ctx, config, 4, DType::kF32); }, {"[rope]", "7"});
  config.dim = 8;
  config.scaling = RopeConfig::Scaling::kYarn;
  ExpectThrows<ConfigError>([&] { MakeRopeTable(ctx, config, 4, DType::kF32); },
                            {"[rope]", "original_max_position 0"});
}

}  // namespace
}  // namespace hone::kernels::testing
