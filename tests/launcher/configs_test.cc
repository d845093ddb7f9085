// Every config that comes with hone reads and passes `hone check`; those of real models say what
// was published.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "rl/run_config.h"
#include "runtime/file_system.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

const std::string kFolder = std::string(HONE_SOURCE_DIR) + "/configs/";

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (entry.path().extension() == ".yaml") names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool NeedsData(const std::string& name) {
  std::ifstream in(kFolder + name + ".yaml");
  std::stringstream text;
  text << in.rdbuf();
  return text.str().find("${HONE_DATA}") != std::string::npos;
}

class ConfigsTest : public testing::TestWithParam<std::string> {};

TEST_P(ConfigsTest, PassesCheck) {
  if (NeedsData(GetParam()) && std::getenv("HONE_DATA") == nullptr) {
    GTEST_SKIP() << GetParam() << " needs the folder that HONE_DATA names";
  }
  runtime::TemporaryFolder folder;
  std::vector<std::string> overrides;
  if (GetParam() == "distill_tiny") {  // the samples of another run
    std::ofstream(folder / "samples.jsonl") << R"({"prompt": "Q:1+1=", "completion": "2"})"
                                            << "\n";
    overrides = {
        fmt::format("stages.distilled.samples=[{}]", std::string(folder / "samples.jsonl"))};
  }
  RunConfig config;
  ASSERT_NO_THROW(config = LoadRunConfig(kFolder + GetParam() + ".yaml", overrides));
  EXPECT_EQ(config.name, GetParam()) << "run.name is the file's";
  EXPECT_NO_THROW(CheckRun(config));
}

INSTANTIATE_TEST_SUITE_P(Configs, ConfigsTest, testing::ValuesIn(Names()), [](const auto& info) {
  std::string name = info.param;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

TEST(Configs, DistillationNamesAMissingFile) {
  RunConfig config = LoadRunConfig(kFolder + "distill_tiny.yaml",
                                   {"stages.distilled.samples=[/nowhere/samples.jsonl]"});
  try {
    CheckRun(config);
    ADD_FAILURE() << "a missing file passed";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("/nowhere/samples.jsonl"));
    EXPECT_THAT(e.what(), testing::HasSubstr("'distilled'"));
  }
}

std::string ReadAll(const std::string& path) {
  return runtime::LocalFileSystem().ReadAll(std::string(HONE_SOURCE_DIR) + "/" + path);
}

TEST(Configs, DocumentationNamesEveryKey) {
  const std::string text = ReadAll("docs/config.md");
  const std::regex key(R"re((?:Optional|Required|OneOf|Map|List|Has)\("([a-z_0-9]+)")re");
  int keys = 0;
  for (const char* file : {"rl/run_config.cc", "model/model_config.cc", "parallel/mesh.cc",
                           "parallel/train_engine.cc", "parallel/sharded_optimizer.cc"}) {
    const std::string source = ReadAll(file);
    for (std::sregex_iterator it(source.begin(), source.end(), key), end; it != end; ++it, ++keys) {
      EXPECT_TRUE(std::regex_search(text, std::regex("\\b" + it->str(1) + "\\b")))
          << file << ": " << it->str(1);
    }
  }
  EXPECT_GT(keys, 100);
}

// DeepSeek-V3's own count, and R1's published settings.
TEST(Configs, DeepSeekR1IsAsPublished) {
  RunConfig config = LoadRunConfig(kFolder + "r1_deepseek_v3_671b.yaml", {});
  EXPECT_EQ(config.model.ParameterCount(false), 671'026'419'200);
  const StageConfig& rl = *config.FindStage("reasoning_rl");
  EXPECT_EQ(rl.grpo.group_size * rl.grpo.prompts_per_rollout, 8192);
  EXPECT_EQ(rl.grpo.minibatches, 16);
  EXPECT_EQ(rl.grpo.reference_every, 400);
  EXPECT_DOUBLE_EQ(rl.lr.peak, 3e-6);
  EXPECT_DOUBLE_EQ(rl.grpo.loss.kl_coefficient, 0.001);
  const StageConfig& last = *config.FindStage("all_scenario");
  EXPECT_EQ(last.steps, 1700);
  EXPECT_EQ(last.grpo.general_last_steps, 400);
  EXPECT_EQ(last.from, "sft");
  EXPECT_EQ(config.FindStage("sft")->from, config.FindStage("cold_start")->from)
      << "the base again";
  EXPECT_EQ(config.FindStage("helpful")->reward_model.pairs->size(), 66'000);
}

}  // namespace
}  // namespace hone::rl
