// Replay where the device has no room for a step's block.
#include <gtest/gtest.h>

#include "kernels/elementwise/elementwise.h"
#include "runtime/context.h"
#include "runtime/replay.h"
#include "tests/cuda_emulation/emulator.h"

namespace hone::runtime {
namespace {

constexpr int64_t kKiB = 1024;

class ReplayMemoryTest : public testing::Test {
 protected:
  ReplayMemoryTest() { cuda_emulation::settings().memory_bytes = 1024 * kKiB; }
  ~ReplayMemoryTest() override { cuda_emulation::settings() = before_; }

  // 2 and 2 is 4, with so much memory for other things.
  void Run(int64_t key, int64_t bytes) {
    Tensor y;
    replay_->Run(key, [&] {
      y = ctx_.Empty({3}, DType::kF32);
      CopyTo(two_, y, &ctx_.stream());
      Tensor more = ctx_.Empty({bytes}, DType::kU8);
      kernels::AddInPlace(ctx_, y, two_);
    });
    EXPECT_EQ(ToDoubles(y), (std::vector<double>{4, 4, 4}));
  }
  Tensor Two() {
    Tensor two = ctx_.Zeros({3}, DType::kF32);
    const std::vector<float> values(3, 2);
    CopyBytes(two.raw(), two.device(), values.data(), Device::Cpu(), two.bytes(), &ctx_.stream());
    return two;
  }

  cuda_emulation::Settings before_ = cuda_emulation::settings();
  Context ctx_{Device::Cuda(0)};
  Tensor two_ = Two();
  std::unique_ptr<Replay> replay_ = MakeReplay(ctx_.allocator());
};

TEST_F(ReplayMemoryTest, AStepWithoutRoomIsRunAsItIsAndOthersAreRecordedAgain) {
  for (int i = 0; i < 3; ++i) Run(1, 4 * kKiB);
  EXPECT_EQ(replay_->stats().replayed, 1);
  Run(2, 600 * kKiB);
  {
    Tensor others = ctx_.Empty({600 * kKiB}, DType::kU8);
    Run(2, 4 * kKiB);  // measured with 600 KiB
    Run(2, 4 * kKiB);
    EXPECT_EQ(replay_->stats().recorded, 1);
  }
  for (int i = 0; i < 4; ++i) Run(1, 4 * kKiB);
  EXPECT_EQ(replay_->stats().recorded, 2);
  EXPECT_EQ(replay_->stats().replayed, 3);
}

}  // namespace
}  // namespace hone::runtime
