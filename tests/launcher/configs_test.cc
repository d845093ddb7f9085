// Every config that comes with hone reads and passes `hone check`; those of real models say what
// was published.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "rl/plan/plan.h"
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

// A student of RECIPE's distillation: what its config.json says, what its config must.
struct Student {
  const char *name, *family, *chat;
  int64_t hidden, intermediate, layers, heads, groups, vocabulary;
  bool tied;
  double rate;
  int64_t device_gigabytes;  // of each of the config's ranks
};
const std::vector<Student>& Students() {
  static const std::vector<Student> students = {
      {"distill_qwen2.5_math_1.5b", "qwen2", "qwen2.5", 1536, 8960, 28, 12, 2, 151936, true, 1e-4,
       80},
      {"distill_qwen2.5_math_7b", "qwen2", "qwen2.5", 3584, 18944, 28, 28, 4, 152064, false, 8e-5,
       80},
      {"distill_qwen2.5_14b", "qwen2", "qwen2.5", 5120, 13824, 48, 40, 8, 152064, false, 7e-5, 80},
      {"distill_qwen2.5_32b", "qwen2", "qwen2.5", 5120, 27648, 64, 40, 8, 152064, false, 6e-5, 80},
      {"distill_llama3.1_8b", "llama", "llama3.1", 4096, 14336, 32, 32, 8, 128256, false, 5e-5, 80},
      {"distill_llama3.3_70b", "llama", "llama3.1", 8192, 28672, 80, 64, 8, 128256, false, 2e-5,
       141},
  };
  return students;
}
const Student* FindStudent(const std::string& name) {
  for (const Student& s : Students()) {
    if (s.name == name) return &s;
  }
  return nullptr;
}

// A folder with the student's config.json alone; the Math models say 4,096 positions.
std::string WriteModelFolder(const Student& s, const std::string& folder) {
  const int64_t positions = std::string(s.name).find("math") != std::string::npos ? 4096 : 131072;
  std::ofstream(folder + "/config.json") << fmt::format(
      R"({{"model_type": "{}", "hidden_size": {}, "intermediate_size": {}, "num_hidden_layers": {},
"num_attention_heads": {}, "num_key_value_heads": {}, "vocab_size": {}, "rms_norm_eps": 1e-6,
"max_position_embeddings": {}, "tie_word_embeddings": {}}})",
      s.family, s.hidden, s.intermediate, s.layers, s.heads, s.groups, s.vocabulary, positions,
      s.tied);
  return folder;
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
  if (const Student* student = FindStudent(GetParam())) {
    std::ofstream(folder / "samples.jsonl")
        << R"({"prompt": "1+1?", "completion": "<think>\neasy\n</think>\n\n2"})"
        << "\n";
    overrides = {"model.hf=" + WriteModelFolder(*student, folder / ""), "tokenizer=byte",
                 fmt::format("stages.distilled.data.jsonl={}", folder / "samples.jsonl")};
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

// RECIPE's values; and from the model's config.json alone, that it fits the devices that the config
// says it is for.
TEST(Configs, DistillationIsAsPublished) {
  for (const Student& student : Students()) {
    SCOPED_TRACE(student.name);
    runtime::TemporaryFolder folder;
    const RunConfig config = LoadPlanConfig(kFolder + student.name + ".yaml",
                                            {"model.hf=" + WriteModelFolder(student, folder / "")});
    const StageConfig& stage = *config.FindStage("distilled");
    EXPECT_EQ(stage.kind, StageKind::kDistill);
    EXPECT_EQ(config.train.device, Device::Type::kCuda);
    EXPECT_EQ(config.train.numerics, Numerics::kFast);
    EXPECT_DOUBLE_EQ(stage.lr.peak, student.rate);
    EXPECT_EQ(stage.lr.schedule, LearningRate::Schedule::kCosine);
    EXPECT_DOUBLE_EQ(stage.lr.final_ratio, 0.1);
    EXPECT_GE(stage.epochs, 2);
    EXPECT_LE(stage.epochs, 3);
    EXPECT_EQ(stage.batch.packs, 64);
    EXPECT_EQ(stage.batch.max_length, 32'768);
    const std::string text = runtime::LocalFileSystem().ReadAll(kFolder + student.name + ".yaml");
    EXPECT_THAT(text, testing::HasSubstr(fmt::format("chat: {}}}", student.chat)));
    const int64_t bytes = student.device_gigabytes * 1'000'000'000;
    EXPECT_EQ(CheckFit(config, bytes, 0).verdict, FitReport::Verdict::kFits);
    EXPECT_THAT(text, testing::HasSubstr(fmt::format("{} GPUs of {} GB", config.mesh.ranks(),
                                                     student.device_gigabytes)));
  }
}

// Whoever shares a GPU fits it: the learner rank, and a worker with its cache.
TEST(Configs, ModelsOfRealSizeTrainOnTheGpusTheyName) {
  for (const auto& [name, gigabytes] :
       {std::pair{"r1_qwen2.5_1.5b", 80}, {"r1_deepseek_v3_671b", 141}}) {
    SCOPED_TRACE(name);
    const RunConfig config = LoadPlanConfig(kFolder + name + ".yaml", {});
    EXPECT_EQ(config.train.device, Device::Type::kCuda);
    EXPECT_EQ(config.train.numerics, Numerics::kFast);
    EXPECT_GT(config.rollout.cache_pages, 0);
    EXPECT_EQ(CheckFit(config, gigabytes * int64_t{1'000'000'000}, 0).verdict,
              FitReport::Verdict::kFits);
    const std::string text = runtime::LocalFileSystem().ReadAll(kFolder + name + ".yaml");
    EXPECT_THAT(text, testing::HasSubstr(fmt::format("GPUs of {} GB", gigabytes)));
  }
}

TEST(Configs, AnAbsentModelFolderIsAskedFor) {
  for (const Student& student : Students()) {
    try {
      LoadRunConfig(kFolder + student.name + ".yaml", {});
      ADD_FAILURE() << student.name << " was read without its model";
    } catch (const ConfigError& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(std::string(student.name) + ".yaml:4"));
      EXPECT_THAT(e.what(), testing::HasSubstr("--set model.hf=FOLDER"));
    }
  }
}

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

// What stands there as code or before a colon: keys are ordinary words elsewhere.
std::set<std::string> NamedIn(const std::string& page) {
  const std::string text = ReadAll(page);
  const std::regex code("`[^`\n]+`|[a-z_0-9]+:"), word("[a-z_0-9]+");
  std::set<std::string> named;
  for (std::sregex_iterator it(text.begin(), text.end(), code), end; it != end; ++it) {
    const std::string words = it->str();
    for (std::sregex_iterator w(words.begin(), words.end(), word); w != end; ++w) {
      named.insert(w->str());
    }
  }
  return named;
}

TEST(Configs, DocumentationNamesEveryKey) {
  const std::map<std::string, std::vector<std::string>> files_of = {
      {"docs/config.md",
       {"rl/run_config.cc", "model/model_config.cc", "parallel/mesh.cc", "parallel/train_engine.cc",
        "parallel/sharded_optimizer.cc"}},
      {"docs/data.md",
       {"data/source.cc", "data/split.cc", "data/jsonl_source.cc",
        "data/families/generated_source.cc"}},
      {"docs/turns.md", {"rl/reward/turn_environment.cc"}}};
  const std::regex key(
      R"re((?:Optional|Required|OneOf|Map|List|Has|Bounded)\((?:\*?\w+, )?"([a-z_0-9]+)")re");
  int keys = 0;
  for (const auto& [page, files] : files_of) {
    const std::set<std::string> named = NamedIn(page);
    for (const std::string& file : files) {
      const std::string source = ReadAll(file);
      const int before = keys;
      for (std::sregex_iterator it(source.begin(), source.end(), key), end; it != end; ++it) {
        EXPECT_TRUE(named.count(it->str(1))) << page << " lacks " << it->str(1) << " of " << file;
        ++keys;
      }
      EXPECT_GT(keys, before) << file << " reads no key";
    }
  }
  EXPECT_GT(keys, 240);
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
