// `hone checkpoint ls|show|verify` on sound and damaged folders.
#include <gmock/gmock.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "launcher/commands.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/context.h"
#include "runtime/error.h"
#include "tests/read_json.h"

namespace hone::launcher {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

class CheckpointCommandTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path().string() + "/hone-test-XXXXXX";
    root_ = ::mkdtemp(name.data());
    Context ctx;
    SlabIndex index = {
        {Slab::Whole("model/w", {4, 8}), ctx.Zeros({4, 8}, DType::kF32)},
        {Slab::Whole("optimizer/exp_avg/w", {4, 8}), ctx.Zeros({4, 8}, DType::kF32)}};
    runtime::CheckpointWriter writer(runtime::LocalFileSystem(),
                                     std::make_shared<runtime::SingleRank>(), {});
    for (const char* step : {"/base/step-000010", "/base/step-000020"}) {
      writer.Save(root_ + step, {index, R"({"step": 10})"});
    }
    writer.Wait();
    std::filesystem::create_directory(root_ + "/base/step-000030.tmp");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  // Runs the command; keeps what it printed.
  int Run(std::vector<std::string> args) {
    ::testing::internal::CaptureStdout();
    int code = CheckpointCommand(args);
    output_ = ::testing::internal::GetCapturedStdout();
    return code;
  }
  void Damage() {
    auto file = runtime::LocalFileSystem().Open(root_ + "/base/step-000020/shard-00000.h5",
                                                runtime::OpenMode::kReadWrite);
    std::string bytes(file->Size(), '\0');
    file->Read(0, bytes.data(), file->Size());
    for (char& byte : bytes) byte = static_cast<char>(byte ^ 4);
    file->Write(0, bytes.data(), static_cast<int64_t>(bytes.size()));
  }
  std::string root_, output_;
};

TEST_F(CheckpointCommandTest, ListsWhatIsThere) {
  EXPECT_EQ(Run({"ls", root_}), 0);
  EXPECT_THAT(output_, AllOf(HasSubstr("step-000010  2 tensors, 32 model parameters, 256 B in 1"),
                             HasSubstr("step-000020"), Not(HasSubstr(".tmp"))));
  EXPECT_EQ(Run({"ls", root_, "--json"}), 0);
  Json all = ParseJson(output_);
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0]["parameters"], 32);
  EXPECT_EQ(all[0]["metadata"]["step"], 10);
}

TEST_F(CheckpointCommandTest, ShowsOne) {
  EXPECT_EQ(Run({"show", root_ + "/base/step-000010/"}), 0);
  EXPECT_THAT(output_, AllOf(HasSubstr("\"step\": 10"), HasSubstr("optimizer/exp_avg/w"),
                             HasSubstr("[4, 8]")));
  EXPECT_EQ(Run({"show", "--json", root_ + "/base/step-000010"}), 0);
  EXPECT_EQ(ParseJson(output_)["tensors"][0]["shape"], (Json{4, 8}));
  EXPECT_THROW(CheckpointCommand({"show", root_}), CheckpointError);
}

TEST_F(CheckpointCommandTest, VerifyFailsOnDamage) {
  EXPECT_EQ(Run({"verify", root_}), 0);
  Damage();
  EXPECT_EQ(Run({"verify", root_}), 1);
  EXPECT_THAT(output_, AllOf(HasSubstr("step-000010  sound"), HasSubstr("step-000020  damaged"),
                             HasSubstr("shard-00000.h5")));
  std::filesystem::remove(root_ + "/base/step-000020/index.h5");
  EXPECT_EQ(Run({"verify", "--json", root_}), 1);
  Json all = ParseJson(output_);
  EXPECT_EQ(all[0]["sound"], true);
  EXPECT_THAT(all[1]["error"], HasSubstr("index.h5 is missing"));
}

TEST_F(CheckpointCommandTest, BadUsageEndsWithTwo) {
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(Run({}), 2);
  EXPECT_EQ(Run({"lst", root_}), 2);
  EXPECT_EQ(Run({"ls"}), 2);
  ::testing::internal::GetCapturedStderr();
  EXPECT_THROW(CheckpointCommand({"ls", root_ + "/none"}), CheckpointError);
  EXPECT_THROW(CheckpointCommand({"ls", root_ + "/base/step-000030.tmp"}), CheckpointError);
}

}  // namespace
}  // namespace hone::launcher
