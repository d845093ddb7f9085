// `hone import` and `hone export`: folders go in and come out as they were.
#include <gmock/gmock.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launcher/commands.h"
#include "model/families/tensor_table.h"
#include "model/safetensors.h"
#include "rl/loaded_model.h"
#include "runtime/checkpoint/checkpoint.h"

namespace hone::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;

std::string Bytes(const Tensor& t) {
  return {static_cast<const char*>(t.raw()), static_cast<size_t>(t.bytes())};
}

class ImportExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = fs::temp_directory_path().string() + "/hone-test-XXXXXX";
    root_ = ::mkdtemp(name.data());
  }
  void TearDown() override { fs::remove_all(root_); }

  // What the command prints, as JSON.
  json Run(int (*command)(const Arguments&), Arguments args) {
    args.push_back("--json");
    ::testing::internal::CaptureStdout();
    const int code = command(args);
    const std::string output = ::testing::internal::GetCapturedStdout();
    EXPECT_EQ(code, 0) << output;
    return json::parse(output, nullptr, false);
  }
  // A copy of a fixture with only what belongs to a Hugging Face folder.
  std::string Folder(const std::string& from) {
    const fs::path to = fs::path(root_) / "original";
    fs::create_directories(to);
    for (const char* file : {"config.json", "model.safetensors", "model.safetensors.index.json"}) {
      if (fs::exists(fs::path(from) / file)) fs::copy(fs::path(from) / file, to / file);
    }
    return to;
  }
  void ExpectEqualTensors(const std::string& original, const std::string& exported) {
    model::SafetensorsReader a(original), b(exported);
    auto config = model::ModelConfig::FromHuggingFace(original + "/config.json");
    for (const auto& entry : a.entries()) {
      if (!model::PlaceOf(config, entry.name)) continue;  // repeats another
      ASSERT_TRUE(b.Has(entry.name)) << entry.name;
      EXPECT_EQ(b.Get(entry.name).dtype(), entry.dtype) << entry.name;
      EXPECT_EQ(b.Get(entry.name).shape(), entry.shape) << entry.name;
      EXPECT_EQ(Bytes(a.Get(entry.name)), Bytes(b.Get(entry.name))) << entry.name;
    }
    for (const auto& entry : b.entries()) {
      const auto place = model::PlaceOf(config, entry.name);
      EXPECT_TRUE(!place || a.Has(entry.name)) << entry.name;
    }
  }
  void ExpectRoundTrip(const std::string& from) {
    const std::string original = Folder(from), checkpoint = root_ + "/imported",
                      exported = root_ + "/exported";
    Run(ImportCommand, {original, checkpoint});
    runtime::CheckpointReader(runtime::LocalFileSystem(), checkpoint).Verify();
    Run(ExportCommand, {checkpoint, exported});
    ExpectEqualTensors(original, exported);
    auto& files = runtime::LocalFileSystem();
    EXPECT_EQ(files.ReadAll(exported + "/config.json"), files.ReadAll(original + "/config.json"));
  }

  std::string root_;
};

class EveryFamily : public ImportExportTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(EveryFamily, ComesOutAsItWentIn) {
  ExpectRoundTrip(std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/" + GetParam());
}

INSTANTIATE_TEST_SUITE_P(Fixtures, EveryFamily,
                         ::testing::Values("llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3",
                                           "deepseek_v3_no_q_lora"),
                         [](const auto& test) { return std::string(test.param); });

TEST_F(ImportExportTest, AModelThatWasReallyTrained) {
  const char* data = std::getenv("HONE_DATA");
  if (!data) GTEST_SKIP() << "HONE_DATA is not set: no weights/stories260K";
  const std::string folder = std::string(data) + "/weights/stories260K";
  if (!fs::exists(folder)) GTEST_SKIP() << folder << " does not exist";
  ExpectRoundTrip(folder + "/hf");
  // What was imported writes the text that its authors' program wrote.
  json out =
      Run(GenerateCommand, {root_ + "/imported", "--tokenizer", folder + "/tok512.bin", "--raw",
                            "--bos", "--prompt", "", "--temperature", "0", "--max-tokens", "200"});
  std::string expected = runtime::LocalFileSystem().ReadAll(folder + "/expected_greedy_200.txt");
  const std::string text = out["text"];
  const size_t begin = text.find_first_not_of(' ');
  ASSERT_GT(text.size(), 300u);
  EXPECT_EQ(expected.substr(0, text.size() - begin), text.substr(begin));
}

// A learner's checkpoint has its experts in one piece: exported all the same, in several files.
TEST_F(ImportExportTest, StackedExpertsAreCutApart) {
  const std::string original =
      Folder(std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/qwen3_moe");
  auto config = model::ModelConfig::FromHuggingFace(original + "/config.json");
  Context ctx;
  model::StageOptions options;
  options.end_layer = config.num_hidden_layers;
  options.dtype = DType::kBF16;  // as the fixture is
  options.with_gradients = false;
  model::TransformerStage stage(ctx, config, options);
  model::LoadHuggingFace(original, stage);
  SlabIndex slabs = stage.State();
  for (SlabTensor& s : slabs) s.slab.name = "model/" + s.slab.name;
  runtime::CheckpointWriter writer(runtime::LocalFileSystem(),
                                   std::make_shared<runtime::SingleRank>(), {});
  writer.Save(root_ + "/trained", {slabs, "{}"});
  writer.Wait();
  fs::copy(original + "/config.json", root_ + "/trained/config.json");
  Run(ExportCommand, {root_ + "/trained", root_ + "/exported", "--shard-bytes", "20000"});
  EXPECT_TRUE(fs::exists(root_ + "/exported/model.safetensors.index.json"));
  ExpectEqualTensors(original, root_ + "/exported");
}

TEST_F(ImportExportTest, WhatDoesNotFitIsNamed) {
  const std::string original = Folder(std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/llama");
  auto& files = runtime::LocalFileSystem();
  json config = json::parse(files.ReadAll(original + "/config.json"));
  config["num_hidden_layers"] = config["num_hidden_layers"].get<int>() + 1;
  files.WriteAtomically(original + "/config.json", config.dump());
  try {
    ImportCommand({original, root_ + "/imported"});
    FAIL() << "it was imported";
  } catch (const CheckpointError& e) {
    EXPECT_THAT(e.what(), HasSubstr("missing"));
    EXPECT_THAT(e.what(), HasSubstr("model.layers.2."));
  }
  EXPECT_FALSE(fs::exists(root_ + "/imported"));
}

TEST_F(ImportExportTest, NothingIsOverwritten) {
  const std::string original = Folder(std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/llama");
  EXPECT_THROW(ImportCommand({original, original}), ConfigError);
  EXPECT_TRUE(fs::exists(original + "/model.safetensors"));
}

}  // namespace
}  // namespace hone::launcher
