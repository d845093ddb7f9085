#include "runtime/philox.h"

#include <gmock/gmock.h>

#include <cmath>
#include <set>
#include <vector>

namespace hone::runtime {
namespace {

using ::testing::ElementsAre;

// The known answers that come with Random123 (kat_vectors, philox4x32 with 10 rounds).
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_THAT(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(
      Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(RandomStreamTest, NamesGiveDifferentStreams) {
  std::set<uint64_t> first;
  auto add = [&](RandomStream stream) { first.insert(stream.Bits(0)); };
  add(RandomStream({}));
  add(RandomStream({0}));
  add(RandomStream({0, 0}));
  add(RandomStream({1, 0}));
  add(RandomStream({0, 1}));
  add(RandomStream({1, 2, 3, 4, 5}));
  add(RandomStream({1, 2, 3, 5, 4}));
  add(RandomStream({uint64_t{1} << 32}));
  EXPECT_EQ(first.size(), 8u);
  EXPECT_EQ(RandomStream({1, 2}).Bits(77), RandomStream({1, 2}).Bits(77));
}

TEST(RandomStreamTest, PositionsAreDistinctOverTheWholeCounter) {
  RandomStream stream({3});
  std::set<uint64_t> bits;
  for (uint64_t position = 0; position < 1000; ++position) {
    bits.insert(stream.Bits(position));
    bits.insert(stream.Bits(position + (uint64_t{1} << 33)));
    bits.insert(stream.Bits(~position));
  }
  EXPECT_EQ(bits.size(), 3000u);
}

// Bounds are over six standard errors wide, and the draws are fixed.
TEST(RandomStreamTest, UniformAndNormalHaveTheirMoments) {
  RandomStream stream({42, 7});
  constexpr int kDraws = 200000;
  double uniform_sum = 0, uniform_square = 0, normal_sum = 0, normal_square = 0, normal_fourth = 0;
  for (int i = 0; i < kDraws; ++i) {
    double u = stream.Uniform(i), z = stream.Normal(i + kDraws);
    ASSERT_TRUE(0 <= u && u < 1);
    ASSERT_TRUE(std::isfinite(z));
    uniform_sum += u;
    uniform_square += u * u;
    normal_sum += z;
    normal_square += z * z;
    normal_fourth += z * z * z * z;
  }
  EXPECT_NEAR(uniform_sum / kDraws, 0.5, 0.004);
  EXPECT_NEAR(uniform_square / kDraws, 1.0 / 3, 0.004);
  EXPECT_NEAR(normal_sum / kDraws, 0, 0.014);
  EXPECT_NEAR(normal_square / kDraws, 1, 0.02);
  EXPECT_NEAR(normal_fourth / kDraws, 3, 0.15);
}

TEST(RandomStreamTest, BelowIsEven) {
  RandomStream stream({5});
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts.at(stream.Below(7, i));
  for (int count : counts) EXPECT_NEAR(count, 10000, 600);
  EXPECT_EQ(stream.Below(1, 3), 0u);
}

// Published FNV-1a test values.
TEST(RandomStreamTest, HashName) {
  EXPECT_EQ(HashName(""), 0xcbf29ce484222325u);
  EXPECT_EQ(HashName("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(HashName("foobar"), 0x85944171f73967e8u);
}

}  // namespace
}  // namespace hone::runtime
