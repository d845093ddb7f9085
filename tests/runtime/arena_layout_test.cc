#include "runtime/arena_layout.h"

#include <gtest/gtest.h>

namespace hone::runtime {
namespace {

TEST(ArenaLayout, TakesTheFirstGapThatFits) {
  ArenaLayout layout;
  EXPECT_EQ(layout.Take(1), 0);
  EXPECT_EQ(layout.Take(1000), 512);
  EXPECT_EQ(layout.Take(512), 1536);
  layout.Give(512);
  EXPECT_EQ(layout.Take(1025), 2048) << "the gap is too small";
  EXPECT_EQ(layout.Take(0), 512);
  EXPECT_EQ(layout.Take(512), 1024);
  EXPECT_EQ(layout.peak(), 3584);
  EXPECT_FALSE(layout.empty());
}

TEST(ArenaLayout, RefusesWhatDoesNotFit) {
  ArenaLayout layout(1024);
  EXPECT_EQ(layout.Take(1025), -1);
  EXPECT_EQ(layout.Take(1024), 0);
  EXPECT_EQ(layout.Take(1), -1);
  EXPECT_EQ(layout.WithoutLimit().Take(1), 1024);
  layout.Give(0);
  EXPECT_TRUE(layout.empty());
  EXPECT_EQ(layout.Take(1), 0);
}

}  // namespace
}  // namespace hone::runtime
