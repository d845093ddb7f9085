#include "rl/run_directory.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/file_system.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

// A model that diverged is evaluated too, and its run can be read and gone on with.
TEST(RunDirectory, KeepsAStateWithScoresThatAreNoNumbers) {
  runtime::TemporaryFolder folder;
  RunDirectory directory(runtime::LocalFileSystem(), folder.path());
  StageRecord stage;
  stage.name = "pretrain";
  stage.evaluations["heldout"] = {{"loss", std::nan("")}, {"tokens", 12.0}};
  stage.evaluations["other"] = {{"loss", std::numeric_limits<double>::infinity()}};
  stage.evaluations["empty"] = {};
  directory.WriteState({.stages = {stage}});
  RunState state = directory.ReadState();
  ASSERT_EQ(state.stages.size(), 1u);
  auto& evaluations = state.stages[0].evaluations;
  EXPECT_TRUE(std::isnan(evaluations["heldout"].at("loss")));
  EXPECT_EQ(evaluations["heldout"].at("tokens"), 12);
  EXPECT_FALSE(std::isfinite(evaluations["other"].at("loss")));
  EXPECT_TRUE(evaluations.contains("empty"));
}

}  // namespace
}  // namespace hone::rl
