// Advantages against numbers worked out by hand from each paper's formula.
#include "rl/advantage.h"

#include <gtest/gtest.h>

#include <cmath>

namespace hone::rl {
namespace {

using Groups = std::vector<std::vector<double>>;

void ExpectNear(const Groups& actual, const Groups& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t g = 0; g < expected.size(); ++g) {
    ASSERT_EQ(actual[g].size(), expected[g].size());
    for (size_t i = 0; i < expected[g].size(); ++i) {
      EXPECT_NEAR(actual[g][i], expected[g][i], 1e-12) << "group " << g << " sample " << i;
    }
  }
}

// Rewards 0, 0, 1, 3: mean 1, population variance (1 + 1 + 0 + 4) / 4 = 1.5.
const Groups kRewards = {{0, 0, 1, 3}, {2, 5}};

TEST(Advantages, GrpoDividesByThePopulationDeviation) {
  double s = std::sqrt(1.5);
  ExpectNear(Advantages(AdvantageKind::kGrpo, kRewards),
             {{-1 / s, -1 / s, 0, 2 / s}, {-1, 1}});  // 3.5 ± 1.5, deviation 1.5
}

TEST(Advantages, DrGrpoOnlyCentres) {
  ExpectNear(Advantages(AdvantageKind::kDrGrpo, kRewards), {{-1, -1, 0, 2}, {-1.5, 1.5}});
}

TEST(Advantages, RlooLeavesOneOut) {
  // 0 − (0 + 1 + 3) / 3, …, 3 − (0 + 0 + 1) / 3
  ExpectNear(Advantages(AdvantageKind::kRloo, kRewards),
             {{-4.0 / 3, -4.0 / 3, 0, 8.0 / 3}, {-3, 3}});
}

TEST(Advantages, ReinforcePlusPlusWhitensTheWholeBatch) {
  // Centred: −1 −1 0 2 −1.5 1.5; mean 0, mean square (1 + 1 + 4 + 2.25 + 2.25) / 6 = 1.75.
  double s = std::sqrt(1.75);
  ExpectNear(Advantages(AdvantageKind::kReinforcePlusPlus, kRewards),
             {{-1 / s, -1 / s, 0, 2 / s}, {-1.5 / s, 1.5 / s}});
}

// Equal rewards carry no signal: exactly zero, also where their mean is not exact.
TEST(Advantages, EqualRewardsGiveExactlyZero) {
  for (auto kind : {AdvantageKind::kGrpo, AdvantageKind::kDrGrpo, AdvantageKind::kRloo,
                    AdvantageKind::kReinforcePlusPlus}) {
    for (double r : {0.0, 1.0, 0.1, -0.7, 1.0 / 3, 1e300}) {
      for (size_t n : {1u, 3u, 7u, 16u}) {
        EXPECT_EQ(Advantages(kind, {std::vector<double>(n, r)}),
                  Groups{std::vector<double>(n, 0.0)})
            << r;
      }
    }
  }
}

// The square of the difference is 0, and so is the deviation.
TEST(Advantages, DifferencesWhoseSquaresUnderflow) {
  for (auto kind : {AdvantageKind::kGrpo, AdvantageKind::kReinforcePlusPlus}) {
    ExpectNear(Advantages(kind, {std::vector{0.0, 1e-200}}), {std::vector{0.0, 0.0}});
  }
}

TEST(Advantages, AGroupOfOneAndNoneAtAll) {
  ExpectNear(Advantages(AdvantageKind::kRloo, {{5}, {0, 2}}), {{0}, {-2, 2}});
  EXPECT_TRUE(Advantages(AdvantageKind::kReinforcePlusPlus, {}).empty());
  ExpectNear(Advantages(AdvantageKind::kGrpo, {{}, {1, 3}}), {{}, {-1, 1}});
}

TEST(Advantages, EveryKindHasAName) {
  EXPECT_EQ(AdvantageNames(),
            (std::vector<std::string>{"grpo", "dr_grpo", "rloo", "reinforce_pp"}));
}

}  // namespace
}  // namespace hone::rl
