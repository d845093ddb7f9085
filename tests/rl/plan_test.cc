// What a plan says of models and layouts whose numbers are known.
#include "rl/plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/families/tensor_table.h"
#include "runtime/file_system.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

using parallel::ScheduleKind;
using ::testing::HasSubstr;

constexpr int64_t kGpu = 80'000'000'000;

std::string ConfigPath(const std::string& name) {
  return HONE_SOURCE_DIR "/configs/" + name + ".yaml";
}

// DeepSeek-V3's config.json in a folder without weights.
class DeepSeekV3PlanTest : public testing::Test {
 protected:
  DeepSeekV3PlanTest() {
    const RunConfig published = LoadPlanConfig(ConfigPath("r1_deepseek_v3_671b"), {});
    runtime::LocalFileSystem().WriteAtomically(folder_ / "config.json",
                                               published.model.ToHuggingFaceJson(DType::kBF16));
  }
  RunConfig Load(std::vector<std::string> overrides) const {
    return LoadPlanConfig(folder_ / "", overrides);
  }
  runtime::TemporaryFolder folder_;
};

TEST_F(DeepSeekV3PlanTest, PublishedLayoutFitsIntoPublishedMachines) {
  const RunConfig config = Load({"mesh.pp=16", "mesh.dp=128", "mesh.ep=64"});
  EXPECT_EQ(config.model.ParameterCount(false), 671'026'419'200);
  const RunPlan plan = PlanRun(config, LayoutOf(config, false), MachineModel());
  ASSERT_EQ(plan.stages.size(), 1u);
  ASSERT_EQ(plan.stages[0].ranks.size(), 16u);
  EXPECT_LT(plan.PeakBytes(), kGpu);
  // Parameters by hand: 4 layers of experts on rank 1, an embedding, head, prediction layer and 3
  // layers on rank 15.
  const int64_t attention =
      7168 * 1536 + 1536 + 1536 * 24576 + 7168 * 576 + 512 + 512 * 32768 + 16384 * 7168;
  const int64_t expert = 3 * 7168 * 2048, norms = 2 * 7168;
  const int64_t layer = attention + norms + 256 * 7168 + expert + 4 * expert;  // 4 of 256 are here
  const auto& ranks = plan.stages[0].ranks;
  EXPECT_EQ(ranks[1][MemoryCategory::kGradients], 4 * 4 * layer);
  EXPECT_EQ(ranks[1][MemoryCategory::kWeights], 2 * 4 * layer + 4 * 4 * 256);  // and biases
  const int64_t table = 129280 * 7168;
  EXPECT_EQ(ranks[15][MemoryCategory::kGradients],
            4 * (3 * layer + 2 * table + 7168 + layer + 3 * 7168 + 2 * 7168 * 7168));
  // f32 master and bf16 moments: of experts the half that this replica updates, of the rest a
  // 128th, the rows of short tensors rounded up.
  const int64_t experts_state = 8 * 4 * 4 * expert / 2;
  EXPECT_NEAR(ranks[1][MemoryCategory::kOptimizer],
              experts_state + 8 * 4 * (layer - 4 * expert) / 128, 2e6);
  // 1F1B's bubble: p − 1 forwards and backwards of 120 microbatches.
  EXPECT_NEAR(plan.stages[0].estimate.bubble, 15.0 / 135, 1e-9);
  EXPECT_EQ(ranks[0].in_flight, 16);
  EXPECT_EQ(ranks[15].in_flight, 1);
}

TEST_F(DeepSeekV3PlanTest, SuggestionsFitAndTheFastestIsFirst) {
  const RunConfig config = Load({"mesh.pp=16", "mesh.dp=128", "mesh.ep=64"});
  const Layout like = LayoutOf(config, false);
  const auto suggestions = SuggestLayouts(config, like, 2048, kGpu, MachineModel());
  ASSERT_GT(suggestions.size(), 3u);
  bool published = false;
  for (size_t i = 0; i < suggestions.size(); ++i) {
    const Suggestion& s = suggestions[i];
    EXPECT_LE(s.peak_bytes, kGpu);
    EXPECT_EQ(s.layout.mesh.ranks(), 2048);
    EXPECT_EQ(PlanRun(config, s.layout, MachineModel()).PeakBytes(), s.peak_bytes);
    if (i > 0) {
      EXPECT_GE(s.step_seconds, suggestions[i - 1].step_seconds);
    }
    published = published || (s.layout.mesh.pp == 16 && s.layout.mesh.ep == 64);
  }
  EXPECT_TRUE(published);
  EXPECT_TRUE(SuggestLayouts(config, like, 2048, 8'000'000'000, MachineModel()).empty());
}

TEST(PlanTest, EveryConfigIsPlannedWithoutItsData) {
  for (const char* name : {"r1_tiny", "r1_zero_tiny", "gsm8k_tiny", "distill_tiny",
                           "r1_qwen2.5_1.5b", "r1_deepseek_v3_671b"}) {
    const RunConfig config = LoadPlanConfig(ConfigPath(name), {});
    const RunPlan plan = PlanRun(config, LayoutOf(config, true), MachineModel::Cpu(1));
    EXPECT_FALSE(plan.stages.empty()) << name;
    for (const StagePlan& stage : plan.stages) {
      EXPECT_GT(stage.Fullest().total, 0) << name;
      EXPECT_GT(stage.estimate.tokens_per_second, 0) << name;
      EXPECT_EQ(stage.ranks.size(), static_cast<size_t>(config.mesh.pp)) << name;
    }
  }
}

TEST(PlanTest, StepTimeFollowsTheFlops) {
  const RunConfig config = LoadPlanConfig(ConfigPath("r1_qwen2.5_1.5b"), {"mesh.dp=1"});
  MachineModel machine;
  machine.node_ranks = 1 << 20;
  machine.node_bandwidth = machine.network_bandwidth = machine.memory_bandwidth = 1e30;
  Layout layout = LayoutOf(config, false);
  layout.activation_checkpointing = false;
  const StepShape step{.tokens = 1024, .sequences = 1, .microbatches = 1};
  const auto memory = EstimateMemory(config.model, layout, step);
  const double seconds = EstimateStep(config.model, layout, step, memory, machine).seconds;
  const auto& m = config.model;
  // Biases and norms multiply nothing; the table is the head.
  double products = 0;
  for (const auto& t : TensorTable(m)) {
    if (t.shape.size() == 2) products += static_cast<double>(runtime::NumElements(t.shape));
  }
  // Four products of a causal half forward and backward each count 2; backward has five.
  const double attention = 28.0 * 12 * 2 * 128 * 512;
  const double flops = 1024 * (6 * products + 2 * attention + 4 * attention);
  EXPECT_NEAR(seconds, flops / (machine.flops * machine.efficiency), 1e-6 * seconds);
  layout.activation_checkpointing = true;
  const double again = EstimateStep(config.model, layout, step, memory, machine).seconds;
  EXPECT_NEAR(again / seconds, 4.0 / 3, 1e-6);
}

TEST(PlanTest, ExchangesAreCountedByHand) {
  MachineModel machine;
  machine.bandwidth_efficiency = 1;
  machine.node_ranks = 4;
  machine.node_bandwidth = 4e9;
  machine.network_bandwidth = 1e9;
  EXPECT_DOUBLE_EQ(machine.SecondsToExchange(1e9, 1), 0);
  EXPECT_DOUBLE_EQ(machine.SecondsToExchange(4e9, 4), 1);
  // Of 7 others 3 are in the node: 4/7 of the bytes leave it.
  EXPECT_DOUBLE_EQ(machine.SecondsToExchange(7e9, 8), 4);
}

TEST(PlanTest, StepsOfEveryKind) {
  const RunConfig config = LoadPlanConfig(ConfigPath("r1_qwen2.5_1.5b"), {});
  const StepShape sft = StepOf(config, *config.FindStage("cold_start"), 8);
  EXPECT_EQ(sft.tokens, 32768);
  EXPECT_EQ(sft.microbatches, 16);
  EXPECT_EQ(sft.frozen_models, 0);
  // 512 samples a step, one a pack.
  const StepShape rl = StepOf(config, *config.FindStage("reasoning_rl"), 8);
  EXPECT_EQ(rl.microbatches, 64);
  EXPECT_EQ(rl.frozen_models, 1);
  EXPECT_THROW(StepOf(config, *config.FindStage("cold_start"), 3), ConfigError);
}

TEST(PlanTest, OffloadedStatesAreTheHosts) {
  const RunConfig plain = LoadPlanConfig(ConfigPath("r1_qwen2.5_1.5b"), {});
  const RunConfig host = LoadPlanConfig(ConfigPath("r1_qwen2.5_1.5b"), {"optimizer.offload=host"});
  const MachineModel machine;
  const StagePlan before = PlanRun(plain, LayoutOf(plain, false), machine).stages[0];
  const StagePlan after = PlanRun(host, LayoutOf(host, false), machine).stages[0];
  const int64_t state = before.ranks[0][MemoryCategory::kOptimizer];
  const int64_t pieces = 3 * 16 << 20;
  ASSERT_GT(state, pieces);
  EXPECT_EQ(before.ranks[0].host_optimizer, 0);
  EXPECT_EQ(after.ranks[0].host_optimizer, state);
  EXPECT_EQ(after.ranks[0][MemoryCategory::kOptimizer], pieces);
  EXPECT_EQ(before.ranks[0].total - after.ranks[0].total, state - pieces);
  // Read and written, with the gradients' shard read beside it.
  EXPECT_DOUBLE_EQ(before.estimate.optimizer_seconds,
                   2.3 * static_cast<double>(state) / (machine.memory_bandwidth * 0.8));
  EXPECT_DOUBLE_EQ(after.estimate.optimizer_seconds,
                   static_cast<double>(state) / (machine.host_bandwidth * 0.8));
  // On the CPU the host's memory is the device's.
  const StagePlan cpu = PlanRun(host, LayoutOf(host, true), machine).stages[0];
  EXPECT_EQ(cpu.ranks[0].host_optimizer, 0);
  EXPECT_EQ(cpu.ranks[0][MemoryCategory::kOptimizer], state);
}

TEST(PlanTest, TheReferenceIsCountedWhereItIs) {
  auto load = [](const std::string& place) {
    return LoadPlanConfig(
        ConfigPath("r1_qwen2.5_1.5b"),
        {"stages.reasoning_rl.reference=" + place, "stages.all_scenario.reference=" + place});
  };
  auto step = [](const RunConfig& c) { return StepOf(c, *c.FindStage("reasoning_rl"), 8); };
  const RunConfig learner = load("learner"), pool = load("pool"), host = load("host");
  EXPECT_EQ(step(learner).frozen_models, 1);
  EXPECT_EQ(step(pool).frozen_models + step(pool).visiting_models, 0);
  EXPECT_EQ(step(host).frozen_models, 0);
  EXPECT_EQ(step(host).visiting_models, 1);
  const auto worker_weights = [](const RunConfig& c) {
    return EstimateWorkerMemory(c)[MemoryCategory::kWeights];
  };
  const int64_t weights = worker_weights(learner);
  EXPECT_EQ(worker_weights(host), weights);
  EXPECT_EQ(worker_weights(pool), 2 * weights);
  EXPECT_EQ(EstimatePublishedBytes(learner), 2 * weights);
  EXPECT_EQ(EstimatePublishedBytes(pool), 3 * weights);
  // Published on the devices, in a synchronous run once.
  RunConfig on_device = pool;
  on_device.rollout.publish = RolloutConfig::Publish::kDevice;
  EXPECT_EQ(EstimatePublishedBytes(on_device), 2 * weights) << "the policy, the reference";
  const auto fullest = [](const RunConfig& c) {
    return PlanRun(c, LayoutOf(c, false), MachineModel()).PeakBytes();
  };
  EXPECT_EQ(fullest(on_device) - fullest(pool), 2 * weights / pool.mesh.ranks());
  on_device.rollout.max_staleness = 1;
  EXPECT_EQ(EstimatePublishedBytes(on_device), 3 * weights);
  // A step with a visitor behind it needs less than one beside a lodger.
  auto rank = [&](const RunConfig& c) {
    return EstimateMemory(c.model, LayoutOf(c, false), step(c))[0];
  };
  EXPECT_EQ(rank(host).host_weights, weights);
  EXPECT_EQ(rank(host)[MemoryCategory::kWeights], rank(learner)[MemoryCategory::kWeights]);
  EXPECT_LT(rank(host).total, rank(learner).total);
  EXPECT_GE(rank(host).total, rank(pool).total);
}

// The most of either turn: the learner's with a waiting worker's weights beside it, or the worker's
// beside what the learner keeps.
TEST(PlanTest, ColocatedRanksAndWorkersTakeTurns) {
  const std::vector<std::string> one = {"mesh.dp=1", "rollout.workers=1", "rollout.max_batch=1",
                                        "rollout.cache_pages=0"};
  const RunConfig apart = LoadPlanConfig(ConfigPath("r1_qwen2.5_1.5b"), one);
  RunConfig turns = apart;
  turns.rollout.colocated = true;
  auto rank = [](const RunConfig& c) {
    return PlanRun(c, LayoutOf(c, false), MachineModel()).stages[0].ranks[0];
  };
  const RankMemory learner = rank(apart);
  const RankMemory working = EstimateWorkerMemory(turns);
  const RankMemory waiting = EstimateWaitingWorkerMemory(turns);
  const int64_t kept = learner[MemoryCategory::kWeights] + learner[MemoryCategory::kOptimizer] +
                       learner[MemoryCategory::kOther];
  ASSERT_GT(learner.total - kept, working.total - waiting.total) << "the learner's turn is larger";
  EXPECT_EQ(rank(turns).total, learner.total + waiting.total);
  EXPECT_EQ(rank(turns)[MemoryCategory::kKvCache], working[MemoryCategory::kKvCache]);
  // With a large cache it is the worker's.
  turns.rollout.max_batch = 1000;
  const RankMemory larger = EstimateWorkerMemory(turns);
  ASSERT_GT(larger.total - waiting.total, learner.total - kept);
  EXPECT_EQ(rank(turns).total, kept + larger.total);
  turns.rollout.workers = 3;
  EXPECT_EQ(rank(turns).total, kept + 3 * larger.total);
}

TEST(PlanTest, FitIsJudgedAgainstTheDevice) {
  const RunConfig config = LoadPlanConfig(ConfigPath("r1_qwen2.5_1.5b"), {});
  const RunPlan plan = PlanRun(config, LayoutOf(config, false), MachineModel());
  const int64_t worker = EstimateWorkerMemory(config).total;
  const int64_t peak = plan.PeakBytes() + worker;  // each rank shares its device with a worker
  EXPECT_EQ(CheckFit(config, peak, 0).verdict, FitReport::Verdict::kFits);
  const FitReport tight = CheckFit(config, peak - 1, 0);
  EXPECT_EQ(tight.verdict, FitReport::Verdict::kTight);
  EXPECT_THAT(tight.text, HasSubstr(GigaBytes(plan.PeakBytes())));
  EXPECT_THAT(tight.text, HasSubstr("1 worker on its device " + GigaBytes(worker)));
  EXPECT_THAT(tight.text, HasSubstr("What helps"));
  EXPECT_EQ(CheckFit(config, peak / 2, 0).verdict, FitReport::Verdict::kDoesNotFit);
  RunConfig others = config;
  others.rollout.workers = 17;
  EXPECT_EQ(CheckFit(others, peak + 2 * worker, 0).verdict, FitReport::Verdict::kFits);
  EXPECT_NE(CheckFit(others, peak + 2 * worker - 1, 0).verdict, FitReport::Verdict::kFits);
  others.rollout.device = Device::Type::kCpu;
  EXPECT_EQ(CheckFit(others, plan.PeakBytes(), 0).verdict, FitReport::Verdict::kFits);
  // As a whole, on one machine: 8 ranks and the workers.
  EXPECT_EQ(CheckFit(config, 0, peak).verdict, FitReport::Verdict::kFits) << "they are on GPUs";
  others.train.device = Device::Type::kCpu;
  EXPECT_EQ(CheckFit(others, 0, peak).verdict, FitReport::Verdict::kDoesNotFit);
}

}  // namespace
}  // namespace hone::rl
