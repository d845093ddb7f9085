// The pool as learner ranks see it, without workers.
#include "rl/stages/sample_pool.h"

#include <gtest/gtest.h>

#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

constexpr char kStages[] = R"(mesh: {dp: 2}
stages:
  - {name: base, kind: pretrain, steps: 1, lr: {peak: 0.001}, data: {family: chain, text: answer}}
)";

TEST(SamplePool, APlanWithoutPromptsEndsOnEveryRank) {
  runtime::TemporaryFolder folder;
  const RunConfig config = ReadRunConfig(Config::FromString(kTinyModel + kStages, "test.yaml"));
  parallel::RunThreadRanks(2, [&](const parallel::GroupPtr& world) {
    const std::atomic<bool> stop{false};
    RunDirectory directory(runtime::LocalFileSystem(), folder / "run");
    if (world->rank() == 0) directory.Acquire(0);
    world->Barrier();
    Context ctx(Device::Cpu(), 1);
    parallel::Mesh mesh(config.mesh, world);
    Learner learner(ctx, mesh, config, directory.fs());
    learner.BeginStage({});
    SamplePool pool(learner, directory, "secret", stop);
    const WeightVersion version = pool.Publish();
    RolloutPlan plan;
    plan.stage = "look";
    plan.weight_version = version.version;
    plan.weight_digest = version.digest;
    pool.Begin(plan);
    EXPECT_TRUE(pool.Finish("look", 0).empty());
  });
}

}  // namespace
}  // namespace hone::rl
