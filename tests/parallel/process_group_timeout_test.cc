// ranks: 3
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "parallel/comm/process_group.h"
#include "runtime/context.h"
#include "runtime/error.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

using testing::HasSubstr;

// Rank 1 comes far too late: who waits is told which group, rank and operation, and for whom.
TEST(Timeout, NamesGroupRankOperationAndWhoIsMissing) {
  auto body = [](const GroupPtr& world) {
    GroupPtr group = world->Split(0, world->rank(), "dp");
    auto begin = std::chrono::steady_clock::now();
    auto sleep_until = [&](int ms) {
      std::this_thread::sleep_until(begin + std::chrono::milliseconds(ms));
    };
    Context ctx;
    Tensor t = ctx.Zeros({4}, DType::kF32);
    std::string message;
    if (group->rank() == 1) sleep_until(1200);
    try {
      group->AllReduce(t)->Wait();
    } catch (const TimeoutError& error) {
      message = error.what();
    }
    if (group->rank() != 1) {
      EXPECT_EQ(message, fmt::format("[all_reduce] group dp, rank {} of 3: waited 0.4 s for rank 1",
                                     group->rank()));
    }
    message.clear();
    if (group->rank() == 0) {
      try {
        group->Receive(t, 2, 6)->Wait();
      } catch (const TimeoutError& error) {
        message = error.what();
      }
      EXPECT_THAT(message, HasSubstr("receive"));
      EXPECT_THAT(message, HasSubstr("rank 0 of 3: waited 0.4 s for rank 2"));
      EXPECT_THAT(message, HasSubstr("tag 6"));
    }
    // Late, but it comes: an MPI program can then still end in order.
    sleep_until(1500);
    if (group->rank() == 2) group->Send(t, 0, 6);
    sleep_until(1600);
  };
  OnRanks({3}, body, {.deadline = std::chrono::milliseconds(400)});
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) {
  return hone::parallel::RunRankTests(argc, argv, {.deadline = std::chrono::milliseconds(400)});
}
