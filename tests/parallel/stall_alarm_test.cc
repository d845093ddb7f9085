#include "parallel/comm/stall_alarm.h"

#include <gtest/gtest.h>

namespace hone::parallel {
namespace {

using std::chrono::milliseconds;

TEST(StallAlarmDeathTest, EndsAProcessWhoseCallDoesNotReturn) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  auto hang = [] {
    StallAlarm alarm(milliseconds(5));
    StallAlarm::Attempt attempt(alarm, "[receive] group pp, rank 1 of 2", milliseconds(50));
    std::this_thread::sleep_for(std::chrono::seconds(60));
  };
  EXPECT_EXIT(hang(), testing::ExitedWithCode(1),
              "\\[receive\\] group pp, rank 1 of 2: .* has not returned for 0.1 s");
}

// Attempts in a row take longer than the limit of one, and what is over is never late.
TEST(StallAlarm, CallsThatReturnAreNotEnded) {
  constexpr milliseconds kLimit(1000), kLonger(1100);
  StallAlarm alarm(milliseconds(5));
  const auto end = std::chrono::steady_clock::now() + kLonger;
  while (std::chrono::steady_clock::now() < end) {
    StallAlarm::Attempt attempt(alarm, "[send]", kLimit);
    std::this_thread::sleep_for(milliseconds(1));
  }
  std::this_thread::sleep_for(kLonger);
}

}  // namespace
}  // namespace hone::parallel
