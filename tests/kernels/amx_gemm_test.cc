// The matrix unit's products against the exact ones, against their definitions, and through the
// layers that use them. Where the processor has no such unit nothing can be run.
#include "kernels/amx_gemm.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/linear/linear.h"
#include "tests/kernels/tensors.h"

namespace hone::kernels {
namespace {

struct Case;
struct Sample;

class AmxTest : public ::testing::Test {
 protected:
  explicit AmxTest(Numerics numerics) : numerics_(numerics) { fast_.numerics = numerics; }
  void SetUp() override {
    if (!HasAmx()) GTEST_SKIP() << "this build or this processor has no AMX";
  }
  template <class T>
  void Multiply(Context& ctx, const Case& s, const Sample& p);
  template <class T>
  void ExpectTheBitsOfEachAlone(Context& ctx, Common common, Case s, std::vector<int64_t> lines);

  const Numerics numerics_;
  Context ctx_{Device::Cpu(), 2};
  Context fast_{Device::Cpu(), 2};
};

struct Bf16PartsTest : AmxTest {
  Bf16PartsTest() : AmxTest(Numerics::kFast) {}
};
struct FixedPointTest : AmxTest {
  FixedPointTest() : AmxTest(Numerics::kFixedPoint) {}
};
struct AmxGemmTest : AmxTest, ::testing::WithParamInterface<Numerics> {
  AmxGemmTest() : AmxTest(GetParam()) {}
};
INSTANTIATE_TEST_SUITE_P(Numerics, AmxGemmTest,
                         ::testing::Values(Numerics::kFast, Numerics::kFixedPoint),
                         [](const auto& i) {
                           return i.param == Numerics::kFast ? "Fast" : "FixedPoint";
                         });

template <class T>
MatrixView<T> View(const Tensor& t, bool transposed) {
  return {t.data<T>(), t.row_stride(), transposed};
}

// A product of random operands, c(m, n) += Σ_k a(m, k) b(k, n) where `accumulate`.
struct Case {
  int64_t M, N, K;
  bool a_transposed = false, b_transposed = false, accumulate = false;
  DType dtype = DType::kF32;
};
struct Sample {
  Tensor a, b, c;

  Sample(Context& ctx, const Case& s, uint32_t seed = 1)
      : a(Random(ctx, s.a_transposed ? Shape{s.K, s.M} : Shape{s.M, s.K}, s.dtype, seed)),
        b(Random(ctx, s.b_transposed ? Shape{s.N, s.K} : Shape{s.K, s.N}, s.dtype, seed + 1)),
        c(Random(ctx, {s.M, s.N}, DType::kF32, seed + 2)) {}

  template <class T>
  Product<T> Of(const Case& s) const {
    return {s.M,
            s.N,
            View<T>(a, s.a_transposed),
            View<T>(b, s.b_transposed),
            c.data<float>(),
            c.row_stride(),
            s.accumulate};
  }
};

template <class T>
void AmxTest::Multiply(Context& ctx, const Case& s, const Sample& p) {
  const Product<T> product = p.Of<T>(s);
  AmxGemmEach<T>(ctx.pool(), numerics_, Common::kLeft, s.K, {&product, 1});
}

// max |error| over max |result|, both of `rows` rows evenly apart.
double Error(const Case& s, const Sample& p, const Tensor& before, int64_t rows = 12) {
  const std::vector<double> a = ToDoubles(p.a), b = ToDoubles(p.b);
  double gap = 0, size = 0;
  for (int64_t m = 0; m < s.M; m += std::max<int64_t>(1, s.M / rows)) {
    for (int64_t n = 0; n < s.N; ++n) {
      double sum = s.accumulate ? before.row<float>(m)[n] : 0;
      for (int64_t k = 0; k < s.K; ++k) {
        sum += a[s.a_transposed ? k * s.M + m : m * s.K + k] *
               b[s.b_transposed ? n * s.K + k : k * s.N + n];
      }
      const double error = std::abs(sum - p.c.row<float>(m)[n]);
      if (!std::isfinite(error)) return error;
      gap = std::max(gap, error);
      size = std::max(size, std::abs(sum));
    }
  }
  return gap / size;
}

TEST_P(AmxGemmTest, IsTheExactProductToF32sPrecision) {
  std::vector<Case> cases;
  for (bool a : {false, true}) {
    for (bool b : {false, true}) {
      for (bool accumulate : {false, true}) {
        cases.push_back({65, 97, 70, a, b, accumulate});      // edges in every direction
        cases.push_back({96, 64, 128, a, b, accumulate});     // none
        cases.push_back({33, 40, 2100, a, b, accumulate});    // several blocks of k
        cases.push_back({40, 1100, 1030, a, b, accumulate});  // and of columns
      }
    }
  }
  cases.push_back({1, 1, 1});
  cases.push_back({200, 3, 31});
  for (Case s : cases) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      s.dtype = dtype;
      Sample p(ctx_, s);
      const Tensor before = ctx_.Clone(p.c);
      dtype == DType::kF32 ? Multiply<float>(ctx_, s, p) : Multiply<BF16>(ctx_, s, p);
      EXPECT_LE(Error(s, p, before), 1.5e-6) << s.M << " " << s.N << " " << s.K << " "
                                             << s.a_transposed << s.b_transposed << s.accumulate;
    }
  }
}

// As of layers that all work in fp8.
TEST_P(AmxGemmTest, NoProductIsNothingToDo) {
  for (Common common : {Common::kLeft, Common::kRight}) GemmEach<float>(fast_, common, 64, {});
}

// Of a number near f32's smallest the later parts are subnormal, with bits that a bf16 has not.
TEST_F(Bf16PartsTest, TinyNumbersSpoilNothing) {
  const Case s{40, 40, 70};
  Sample p(ctx_, s);
  for (Tensor* t : {&p.a, &p.b}) {
    for (int64_t i = 0; i < t->size(); ++i) {
      if (i % 3 != 0) t->data<float>()[i] *= std::ldexp(1.0f, static_cast<int>(-100 - i % 40));
    }
  }
  Multiply<float>(ctx_, s, p);
  EXPECT_LE(Error(s, p, p.c), 1.5e-6);
}

TEST_F(Bf16PartsTest, IsNearerToTheExactProductThanAChain) {
  const Case s{64, 64, 4096};
  Sample amx(ctx_, s), chain(ctx_, s);
  Multiply<float>(ctx_, s, amx);
  Gemm<float>(ctx_.pool(), s.M, s.N, s.K, View<float>(chain.a, false), View<float>(chain.b, false),
              chain.c.data<float>(), chain.c.row_stride(), false);
  EXPECT_LT(Error(s, amx, amx.c), Error(s, chain, chain.c));
}

// TDPBF16PS as Intel's manual (Software Developer's Manual, volume 2) has it: pairs of k from 0 on,
// a chain of its even and one of its odd elements, whose sum is added.
float AddStep(float sum, const float* x, const float* y) {
  float even = 0, odd = 0;
  for (int pair = 0; pair < 16; ++pair) {
    even = std::fma(x[2 * pair], y[2 * pair], even);
    odd = std::fma(x[2 * pair + 1], y[2 * pair + 1], odd);
  }
  return sum + (even + odd);
}
// Part `part` of x: the nearest bf16 (halves away from 0) of what the parts before leave.
float Part(float x, int part) {
  for (int i = 0;; ++i) {
    const float nearest = std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x8000) & 0xffff0000u);
    if (i == part) return nearest;
    x -= nearest;
  }
}

TEST_F(Bf16PartsTest, HasTheBitsOfTheInstructionsDefinition) {
  const Case s{40, 50, 100};
  Sample p(ctx_, s);
  Multiply<float>(ctx_, s, p);
  for (int64_t m = 0; m < s.M; ++m) {
    for (int64_t n = 0; n < s.N; ++n) {
      float sum = 0;
      for (int64_t k0 = 0; k0 < s.K; k0 += 32) {
        constexpr int kOrder[6][2] = {{0, 2}, {0, 1}, {0, 0}, {2, 0}, {1, 0}, {1, 1}};
        for (auto [i, j] : kOrder) {
          float x[32] = {}, y[32] = {};
          for (int64_t k = k0; k < std::min(s.K, k0 + 32); ++k) {
            x[k - k0] = Part(p.a.row<float>(m)[k], i);
            y[k - k0] = Part(p.b.row<float>(k)[n], j);
          }
          sum = AddStep(sum, x, y);
        }
      }
      ASSERT_EQ(std::bit_cast<uint32_t>(sum), std::bit_cast<uint32_t>(p.c.row<float>(m)[n]))
          << m << ", " << n;
    }
  }
}

TEST_P(AmxGemmTest, ARowHasTheSameBitsInAnyBatchAndWithAnyThreads) {
  const Case s{300, 80, 1500};
  Sample whole(ctx_, s);
  Multiply<float>(ctx_, s, whole);
  for (int threads : {1, 3}) {
    Context ctx(Device::Cpu(), threads);
    for (int64_t rows : {1, 7, 64, 299}) {
      Sample part(ctx, s);
      Product<float> product = part.Of<float>(s);
      product.M = rows;
      product.a_MK.data += product.a_MK.stride;
      AmxGemmEach<float>(ctx.pool(), numerics_, Common::kLeft, s.K, {&product, 1});
      EXPECT_TRUE(SameBits(part.c.Slice(0, rows), whole.c.Slice(1, 1 + rows))) << rows;
    }
  }
}

// A line's numbers as three digits of −128 … 127, the highest first, in units of which the greatest
// number has about as many as three digits hold.
struct Fixed {
  float unit;  // of the middle of a product's digits: 2^16 of the line's
  std::vector<std::array<int, 3>> digits;

  explicit Fixed(const std::vector<float>& line) {
    float greatest = 0;
    for (float x : line) greatest = std::max(greatest, std::abs(x));
    const float scale = static_cast<float>(127 * (65536 + 256 + 1) - 1) / greatest;
    unit = 65536 / scale;
    for (float x : line) {
      auto rest = static_cast<int>(std::nearbyint(x * scale));
      std::array<int, 3> d;
      for (int place : {2, 1, 0}) {
        d[place] = ((rest + 128) & 255) - 128;
        rest = (rest - d[place]) / 256;
      }
      EXPECT_EQ(rest, 0) << x;
      digits.push_back(d);
    }
  }
};

// The products of digits whose places' sum is `places`.
float Sum(const Fixed& a, const Fixed& b, int places) {
  int64_t sum = 0;
  for (size_t k = 0; k < a.digits.size(); ++k) {
    for (int i = 0; i <= places; ++i) sum += a.digits[k][i] * b.digits[k][places - i];
  }
  return static_cast<float>(sum);
}

TEST_F(FixedPointTest, HasTheBitsOfItsDefinition) {
  const Case s{40, 50, 700};
  Sample p(ctx_, s);
  for (int64_t m = 0; m < s.M; ++m) {  // rows and columns of many sizes, and two all of greatest
    for (int64_t k = 0; k < s.K; ++k) p.a.row<float>(m)[k] *= std::ldexp(1.0f, m % 31 - 15);
  }
  for (int64_t k = 0; k < s.K; ++k) {
    for (int64_t n = 0; n < s.N; ++n) p.b.row<float>(k)[n] *= std::ldexp(1.0f, 2 * (n % 23 - 11));
    p.a.row<float>(7)[k] = k % 2 ? 1.7f : -1.7f;
    p.b.row<float>(k)[9] = 8355711;
  }
  Multiply<float>(ctx_, s, p);
  for (int64_t m = 0; m < s.M; ++m) {
    for (int64_t n = 0; n < s.N; ++n) {
      float sum = 0;
      for (int64_t k0 = 0; k0 < s.K; k0 += 512) {
        std::vector<float> row, column;
        for (int64_t k = k0; k < std::min(s.K, k0 + 512); ++k) {
          row.push_back(p.a.row<float>(m)[k]);
          column.push_back(p.b.row<float>(k)[n]);
        }
        const Fixed a(row), b(column);
        const float digits =
            std::fma(Sum(a, b, 2), 0x1p-16f, std::fma(Sum(a, b, 1), 0x1p-8f, Sum(a, b, 0)));
        sum = std::fma(digits, a.unit * b.unit, sum);
      }
      ASSERT_EQ(std::bit_cast<uint32_t>(sum), std::bit_cast<uint32_t>(p.c.row<float>(m)[n]))
          << m << ", " << n;
    }
  }
}

// The error is relative to the greatest of row and column, however far below others these are.
TEST_F(FixedPointTest, EachRowAndColumnHasItsOwnUnit) {
  const Case s{40, 36, 600};
  Sample p(ctx_, s);
  for (int64_t k = 0; k < s.K; ++k) {
    for (int64_t m = 0; m < s.M; ++m) p.a.row<float>(m)[k] *= std::ldexp(1.0f, -2 * (m % 40));
    for (int64_t n = 0; n < s.N; ++n) p.b.row<float>(k)[n] *= std::ldexp(1.0f, n % 2 ? 60 : -4);
  }
  Multiply<float>(ctx_, s, p);
  const std::vector<double> a = ToDoubles(p.a), b = ToDoubles(p.b);
  for (int64_t m = 0; m < s.M; ++m) {
    for (int64_t n = 0; n < s.N; ++n) {
      double sum = 0, size = 0, row = 0, column = 0;
      for (int64_t k = 0; k < s.K; ++k) {
        const double x = a[m * s.K + k], y = b[k * s.N + n];
        sum += x * y;
        size += x * x * y * y;
        row = std::max(row, std::abs(x));
        column = std::max(column, std::abs(y));
      }
      const double error = std::abs(p.c.row<float>(m)[n] - sum);
      EXPECT_LE(error, 2e-6 * std::sqrt(size)) << m << ", " << n;
      EXPECT_LE(error, std::ldexp(row * column, -21) * static_cast<double>(s.K));
    }
  }
}

TEST_F(FixedPointTest, ExtremeNumbersSpoilTheirOwnLinesOnly) {
  const Case s{40, 40, 70};
  Sample p(ctx_, s), plain(ctx_, s);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t k = 0; k < s.K; ++k) {
    p.a.row<float>(2)[k] = 0;
    p.a.row<float>(3)[k] *= 1e-44f;  // subnormal
    p.a.row<float>(4)[k] = k % 2 ? 3.4e38f : -3.4e38f;
    p.b.row<float>(k)[6] = 1e-38f;
  }
  p.a.row<float>(0)[5] = kInfinity;
  p.a.row<float>(1)[69] = std::nanf("");
  p.b.row<float>(3)[8] = -kInfinity;
  Multiply<float>(ctx_, s, p);
  Multiply<float>(ctx_, s, plain);
  for (int64_t m = 0; m < s.M; ++m) {
    for (int64_t n = 0; n < s.N; ++n) {
      const float c = p.c.row<float>(m)[n];
      if (m < 2 || n == 8) {
        EXPECT_TRUE(std::isnan(c)) << m << ", " << n;
      } else if (m == 2) {
        EXPECT_EQ(c, 0) << n;
      } else if (m == 4 && n == 6) {
        EXPECT_EQ(c, 0);  // as many of either sign
      } else if (m > 4 && n != 6) {
        EXPECT_EQ(c, plain.c.row<float>(m)[n]) << m << ", " << n;
      } else {
        EXPECT_TRUE(std::isfinite(c) || m == 4) << m << ", " << n;
      }
    }
  }
}

// No unit is below 2^-127, but down to there nothing is lost.
TEST_F(FixedPointTest, SmallNumbersKeepWhatIsAboveTheSmallestUnit) {
  const Case s{33, 40, 70};
  Sample p(ctx_, s);
  for (int64_t i = 0; i < p.a.size(); ++i) p.a.data<float>()[i] *= 0x1p-114f;
  Multiply<float>(ctx_, s, p);
  EXPECT_LE(Error(s, p, p.c), 1e-3);
}

TEST_F(FixedPointTest, MayBeSplitOverKAtMultiplesOf512) {
  const Case s{40, 50, 1300};
  Sample whole(ctx_, s), parts(ctx_, s);
  Multiply<float>(ctx_, s, whole);
  for (int64_t k : {0, 512}) {
    Product<float> product = parts.Of<float>(s);
    product.a_MK.data += k;
    product.b_KN.data += k * product.b_KN.stride;
    product.accumulate = k > 0;
    AmxGemmEach<float>(ctx_.pool(), numerics_, Common::kLeft, k == 0 ? 512 : s.K - k,
                       {&product, 1});
  }
  EXPECT_TRUE(SameBits(parts.c, whole.c));
}

TEST_F(Bf16PartsTest, MayBeSplitOverKAtMultiplesOf32) {
  const Case s{40, 50, 320};
  Sample whole(ctx_, s), parts(ctx_, s);
  Multiply<float>(ctx_, s, whole);
  for (int64_t k : {0, 96, 224}) {
    const int64_t end = k == 0 ? 96 : k == 96 ? 224 : 320;
    Product<float> product = parts.Of<float>(s);
    product.a_MK.data += k;
    product.b_KN.data += k * product.b_KN.stride;
    product.accumulate = k > 0;
    AmxGemmEach<float>(ctx_.pool(), numerics_, Common::kLeft, end - k, {&product, 1});
  }
  EXPECT_TRUE(SameBits(parts.c, whole.c));
}

// Products with an operand in common, of `lines` rows or columns, some of which begin from what is
// there: each has the bits that it has alone.
template <class T>
void AmxTest::ExpectTheBitsOfEachAlone(Context& ctx, Common common, Case s,
                                       std::vector<int64_t> lines) {
  const bool left = common == Common::kLeft;
  std::vector<Sample> together, alone;
  std::vector<Product<T>> products;
  for (size_t i = 0; i < lines.size(); ++i) {
    (left ? s.N : s.M) = lines[i];
    s.accumulate = i % 2 == 0;
    for (auto* samples : {&together, &alone}) {
      Sample& sample = samples->emplace_back(ctx, s, 10 * i);
      (left ? sample.a : sample.b) = left ? together[0].a : together[0].b;
    }
    products.push_back(together[i].template Of<T>(s));
    Multiply<T>(ctx, s, alone[i]);
  }
  AmxGemmEach<T>(ctx.pool(), numerics_, common, s.K, products);
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_TRUE(SameBits(together[i].c, alone[i].c)) << (left ? "left " : "right ") << i;
  }
}

TEST_P(AmxGemmTest, GivesProductsOfACommonOperandTheBitsOfEachAlone) {
  for (int threads : {1, 3}) {
    Context ctx(Device::Cpu(), threads);
    for (Common common : {Common::kLeft, Common::kRight}) {
      for (bool a : {false, true}) {
        for (bool b : {false, true}) {
          Case s{65, 70, 600, a, b};
          ExpectTheBitsOfEachAlone<float>(ctx, common, s, {40, 0, 97, 1});
          s.dtype = DType::kBF16;
          ExpectTheBitsOfEachAlone<BF16>(ctx, common, s, {40, 0, 97, 1});
        }
      }
      // More columns than are packed at once, a boundary inside of a product.
      ExpectTheBitsOfEachAlone<float>(ctx, common, {33, 35, 512}, {1100, 1300});
    }
  }
}

TEST_P(AmxGemmTest, ServesLinearLayersWhenTheyMayBeFast) {
  const int64_t T = 256, N = 256, K = 160;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const double tolerance = dtype == DType::kF32 ? 1e-6 : 1e-2;
    const Tensor x = Random(ctx_, {T, K}, dtype, 1), w = Random(ctx_, {N, K}, dtype, 2),
                 dy = Random(ctx_, {T, N}, dtype, 3), bias = Random(ctx_, {N}, dtype, 4);
    const Tensor x64 = As(ctx_, x, DType::kF64), w64 = As(ctx_, w, DType::kF64),
                 dy64 = As(ctx_, dy, DType::kF64), bias64 = As(ctx_, bias, DType::kF64);
    const Tensor y = Linear(fast_, x, w, &bias), dx = LinearInputGradient(fast_, dy, w);
    EXPECT_LE(Gap(y, Linear(ctx_, x64, w64, &bias64)), tolerance);
    EXPECT_LE(Gap(dx, LinearInputGradient(ctx_, dy64, w64)), tolerance);
    Tensor dw = fast_.Zeros({N, K}, DType::kF32), dw64 = ctx_.Zeros({N, K}, DType::kF64),
           chain = ctx_.Zeros({N, K}, DType::kF32);
    LinearWeightGradient(fast_, dy, x, dw);
    LinearWeightGradient(ctx_, dy64, x64, dw64);
    LinearWeightGradient(ctx_, dy, x, chain);
    EXPECT_LE(Gap(dw, dw64), tolerance);
    EXPECT_FALSE(SameBits(dw, chain));  // else it was not this unit that made it
  }
}

TEST_P(AmxGemmTest, TakesALayerThatIsTooNarrowAloneBesideAWideOneOfTheSameInput) {
  const int64_t T = 256, K = 160;
  const Tensor x = Random(ctx_, {T, K}, DType::kF32, 1);
  const Tensor wide = Random(ctx_, {256, K}, DType::kF32, 2),
               narrow = Random(ctx_, {32, K}, DType::kF32, 3);
  const Tensor chain = Linear(ctx_, x, narrow);
  EXPECT_TRUE(SameBits(Linear(fast_, x, narrow), chain));
  const Tensor together = LinearEach(fast_, x, {{wide}, {narrow}})[1];
  EXPECT_FALSE(SameBits(together, chain));
  EXPECT_LE(Gap(together, chain), 1e-6);

  const Tensor dy_wide = Random(ctx_, {T, 256}, DType::kF32, 4),
               dy_narrow = Random(ctx_, {T, 32}, DType::kF32, 5);
  Tensor dw_wide = ctx_.Zeros({256, K}, DType::kF32), dw = ctx_.Zeros({32, K}, DType::kF32),
         dw_chain = ctx_.Zeros({32, K}, DType::kF32);
  LinearWeightGradient(fast_, dy_narrow, x, dw_chain);
  LinearWeightGradientEach(fast_, x, {{dy_wide, dw_wide}, {dy_narrow, dw}});
  EXPECT_FALSE(SameBits(dw, dw_chain));
  EXPECT_LE(Gap(dw, dw_chain), 1e-6);
}

// Many experts are shared among the threads, each of which then multiplies alone.
TEST_P(AmxGemmTest, ServesManyExpertsAtOnce) {
  const int64_t experts = 8, rows = 160, N = 160, K = 160;
  const Tensor x = Random(ctx_, {experts * rows, K}, DType::kF32, 1),
               w = Random(ctx_, {experts, N, K}, DType::kF32, 2);
  std::vector<int64_t> offset;
  for (int64_t e = 0; e <= experts; ++e) offset.push_back(e * rows);
  const Tensor y = GroupedLinear(fast_, x, w, offset);
  EXPECT_LE(Gap(y, GroupedLinear(ctx_, As(ctx_, x, DType::kF64), As(ctx_, w, DType::kF64), offset)),
            1e-6);
  EXPECT_FALSE(SameBits(y, GroupedLinear(ctx_, x, w, offset)));
}

}  // namespace
}  // namespace hone::kernels
