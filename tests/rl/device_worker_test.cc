// emulated: ascending
// A worker on a device, as a process of its own: the weights that it draws with come from the
// learner's device or through the host, and it gives its memory back between two turns.
#include "tests/rl/worker_testing.h"

namespace hone::rl {
namespace {

class DeviceWorkerTest : public WorkerTest {
 protected:
  void SetUp() override {
    if (ctx_.device().is_cpu()) GTEST_SKIP() << "there is no device but the host";
    engine_.lazy_cache = true;
    engine_.max_batch = 2;
  }
  // Two turns, each with weights of its own.
  std::vector<Sample> DrawnBy(Device place) {
    publishing_.place = place;
    model_->Initialize(3);
    StartPool();
    StartWorkers(1);
    std::vector<Sample> drawn;
    for (int64_t rollout : {0, 1}) {
      RolloutPlan plan = TinyPlan(1, 2, 5);
      plan.rollout = rollout;
      plan.weight_version = version_.version;
      plan.weight_digest = version_.digest;
      coordinator_->Begin(plan);
      coordinator_->GiveMemory();
      for (Sample& sample : Finish(plan)) drawn.push_back(std::move(sample));
      coordinator_->TakeMemory(std::chrono::seconds(30));
      model_->Initialize(8);
      version_ = publisher_->Publish(*alone_, 2, model_->State());
      coordinator_->Publish(version_);
    }
    return drawn;
  }
  // Workers tell with their heartbeats.
  int64_t Fetched(int64_t expected) const {
    for (int i = 0; i < 500 && coordinator_->stats().weight_host_bytes < expected; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    return coordinator_->stats().weight_host_bytes;
  }
};

TEST_F(DeviceWorkerTest, DrawsTheSameWhereverItsWeightsComeFrom) {
  constexpr int64_t kDigests = 2 * 16;  // of two versions
  int64_t bytes = 0;
  for (const SlabTensor& s : model_->State()) bytes += s.tensor.bytes();
  const std::vector<Sample> from_device = DrawnBy(ctx_.device());
  EXPECT_EQ(Fetched(kDigests), kDigests);
  StopPool();
  const std::vector<Sample> through_host = DrawnBy(Device::Cpu());
  EXPECT_EQ(Fetched(kDigests + 2 * bytes), kDigests + 2 * bytes);
  StopPool();
  ASSERT_EQ(from_device.size(), 4u);
  ASSERT_EQ(through_host.size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(SameSample(from_device[i], through_host[i])) << i;
}

}  // namespace
}  // namespace hone::rl
