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

using std::chrono::milliseconds;
using testing::HasSubstr;

// Processes need longer than threads to come together for the group itself.
milliseconds Deadline() { return milliseconds(StartedByMpi() ? 1500 : 400); }

// Rank 1 comes far too late: who waits is told which group, rank and operation, and for whom.
TEST(Timeout, NamesGroupRankOperationAndWhoIsMissing) {
  auto body = [](const GroupPtr& world) {
    GroupPtr group = world->Split(0, world->rank(), "dp");
    const auto begin = std::chrono::steady_clock::now();
    const auto sleep_until = [&](int tenths) {  // of the deadline
      std::this_thread::sleep_until(begin + tenths * Deadline() / 10);
    };
    const std::string waited = fmt::format("of 3: waited {:.1f} s for rank",
                                           static_cast<double>(Deadline().count()) / 1e3);
    Context ctx;
    Tensor t = ctx.Zeros({4}, DType::kF32);
    std::string message;
    if (group->rank() == 1) sleep_until(20);
    try {
      group->AllReduce(t)->Wait();
    } catch (const TimeoutError& error) {
      message = error.what();
    }
    if (group->rank() != 1) {
      EXPECT_EQ(message, fmt::format("[all_reduce] group dp, rank {} {} 1", group->rank(), waited));
    }
    message.clear();
    if (group->rank() == 0) {
      try {
        group->Receive(t, 2, 6)->Wait();
      } catch (const TimeoutError& error) {
        message = error.what();
      }
      EXPECT_THAT(message, HasSubstr("receive"));
      EXPECT_THAT(message, HasSubstr("rank 0 " + waited + " 2"));
      EXPECT_THAT(message, HasSubstr("tag 6"));
    }
    // Late, but it comes: an MPI program can then still end in order.
    sleep_until(30);
    if (group->rank() == 2) group->Send(t, 0, 6);
    sleep_until(35);
  };
  OnRanks({3}, body, {.deadline = Deadline()});
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) {
  return hone::parallel::RunRankTests(argc, argv, {.deadline = hone::parallel::Deadline()});
}
