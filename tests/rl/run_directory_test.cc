#include "rl/run_directory.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
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

TEST(RunDirectory, ASecretIsPrivateKeptAndWhole) {
  namespace files = std::filesystem;
  runtime::TemporaryFolder folder;
  RunDirectory directory(runtime::LocalFileSystem(), folder.path());
  const std::string secret = directory.Secret();
  EXPECT_EQ(secret.size(), 64u);
  EXPECT_EQ(files::status(directory.secret()).permissions(),
            files::perms::owner_read | files::perms::owner_write);
  EXPECT_EQ(directory.Secret(), secret);
  // What a power cut or a full disk may leave.
  for (const std::string& torn : {std::string(), secret.substr(0, 20), std::string(64, '\0')}) {
    runtime::LocalFileSystem().WriteAtomically(directory.secret(), torn);
    const std::string anew = directory.Secret();
    EXPECT_EQ(anew.size(), 64u);
    EXPECT_NE(anew, torn);
    EXPECT_EQ(runtime::LocalFileSystem().ReadAll(directory.secret()), anew);
    EXPECT_EQ(files::status(directory.secret()).permissions(),
              files::perms::owner_read | files::perms::owner_write);
  }
}

TEST(RunDirectory, ACertificateStandsBehindTheSecretWhileItIsWanted) {
  runtime::TemporaryFolder folder;
  RunDirectory directory(runtime::LocalFileSystem(), folder.path());
  auto kept = [&] { return runtime::LocalFileSystem().ReadAll(directory.secret()); };
  const std::string secret = directory.Secret();
  const std::string both = directory.Secret(true);
  EXPECT_TRUE(both.starts_with(secret + "\n-----BEGIN PRIVATE KEY-----\n"));
  EXPECT_EQ(kept(), both);
  EXPECT_EQ(directory.Secret(true), both) << "workers have read it";
  EXPECT_EQ(directory.Secret(false), secret);
  EXPECT_EQ(kept(), secret);
}

}  // namespace
}  // namespace hone::rl
