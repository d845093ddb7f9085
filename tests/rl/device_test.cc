// emulated: random:2
// timeout: 600
// Whole runs, pretraining and fine-tuning with checkpoints, on the device under test and on the
// CPU.
#include <gtest/gtest.h>

#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

class DeviceRun : public testing::Test {
 protected:
  DeviceRun() {
    WriteQuestions(folder_ / "questions.jsonl");
    yaml_ = TinyRun(folder_ / "questions.jsonl");
  }
  // The same for every layout; a few small steps, each with a checkpoint.
  std::vector<std::string> Overrides(int dp, int ep) {
    return {"stages.base.steps=2",           "stages.base.save_every=1",
            "stages.base.batch.packs=2",     "stages.sft.batch.packs=8",
            "stages.sft.epochs=1",           "stages.sft.save_every=1",
            "mesh.dp=" + std::to_string(dp), "mesh.ep=" + std::to_string(ep)};
  }
  std::string NewDir() { return folder_ / fmt::format("run-{}", runs_++); }

  runtime::TemporaryFolder folder_;
  std::string yaml_;
  int runs_ = 0;
};

const std::vector<std::string> kStages = {"base", "sft"};

// f64, so what is left of the difference is the order of sums.
void ExpectClose(const RunTrace& got, const RunTrace& want) {
  ASSERT_EQ(got.metrics.size(), want.metrics.size());
  for (size_t i = 0; i < want.metrics.size(); ++i) {
    for (const char* key : {"loss", "grad_norm"}) {
      if (!want.metrics[i].contains(key)) continue;
      const double value = want.metrics[i].at(key);
      EXPECT_NEAR(got.metrics[i].at(key), value, 1e-7 * std::abs(value)) << key << " of line " << i;
    }
  }
  ASSERT_EQ(got.tensors.size(), want.tensors.size());
  for (const auto& [name, values] : want.tensors) {
    const std::vector<double>& mine = got.tensors.at(name);
    ASSERT_EQ(mine.size(), values.size()) << name;
    for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(mine[i], values[i], 1e-6) << name;
  }
}

TEST_F(DeviceRun, EndsWithTheWeightsOfTheCpu) {
  for (auto [dp, ep] : {std::pair{1, 1}, std::pair{2, 2}}) {
    SCOPED_TRACE(fmt::format("dp {}, ep {}", dp, ep));
    const std::string cpu = NewDir(), device = NewDir();
    ASSERT_TRUE(Train(yaml_, Overrides(dp, ep), cpu, false, Device::Cpu()));
    ASSERT_TRUE(Train(yaml_, Overrides(dp, ep), device));
    ExpectClose(ReadTrace(device, kStages), ReadTrace(cpu, kStages));
  }
}

// The optimizer's states are in the host's memory at every other start, and so of each two
// checkpoints that follow each other one was written from there and the other read to there.
TEST_F(DeviceRun, StoppedAtEveryStepAndOffloadedInTurnsItLeavesTheSameBits) {
  const std::string whole = NewDir(), pieces = NewDir();
  ASSERT_TRUE(Train(yaml_, Overrides(1, 1), whole));
  std::vector<std::string> offloaded = Overrides(1, 1);
  offloaded.push_back("optimizer.offload=host");
  int starts = 1;
  while (!Train(yaml_, starts % 2 == 1 ? offloaded : Overrides(1, 1), pieces, /*stop=*/true) &&
         starts < 50) {
    ++starts;
  }
  EXPECT_GT(starts, 3);
  EXPECT_TRUE(ReadTrace(pieces, kStages) == ReadTrace(whole, kStages));
  for (const std::string& stage : kStages) {
    const auto want = ReadCheckpoints(whole, stage);
    EXPECT_GT(want.size(), 1u) << stage;
    EXPECT_TRUE(ReadCheckpoints(pieces, stage) == want) << stage;
  }
}

TEST_F(DeviceRun, GoesOnWhereTheCpuStopped) {
  const std::string whole = NewDir(), mixed = NewDir();
  ASSERT_TRUE(Train(yaml_, Overrides(1, 1), whole, false, Device::Cpu()));
  bool done = false;
  for (int start = 0; !done && start < 50; ++start) {
    done = Train(yaml_, Overrides(1, 1), mixed, /*stop=*/true,
                 start % 2 == 0 ? Device::Cpu() : TestDevice());
  }
  ExpectClose(ReadTrace(mixed, kStages), ReadTrace(whole, kStages));
}

}  // namespace
}  // namespace hone::rl
