// `hone import` and `hone export`: folders go in and come out as they were.
#include <gmock/gmock.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "launcher/commands.h"
#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "rl/loaded_model.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/read_json.h"

namespace hone::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;

std::string Bytes(const Tensor& t) {
  return {static_cast<const char*>(t.raw()), static_cast<size_t>(t.bytes())};
}

std::string Fixture(const std::string& name) {
  return std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/" + name;
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
    return ParseJson(output, false);
  }
  // A copy of a fixture with only what belongs to a Hugging Face folder.
  std::string Folder(const std::string& from) {
    const fs::path to = fs::path(root_) / "original";
    fs::create_directories(to);
    for (const auto& entry : fs::directory_iterator(from)) {
      const std::string file = entry.path().filename();
      if (file == "config.json" || file.starts_with("model")) fs::copy(entry.path(), to / file);
    }
    return to;
  }
  // The same names in both, and of each the same bytes.
  void ExpectEqualTensors(const std::string& original, const std::string& exported) {
    model::SafetensorsReader a(original), b(exported);
    for (const auto& entry : a.entries()) {
      ASSERT_TRUE(b.Has(entry.name)) << entry.name;
      EXPECT_EQ(b.Get(entry.name).dtype(), entry.dtype) << entry.name;
      EXPECT_EQ(b.Get(entry.name).shape(), entry.shape) << entry.name;
      EXPECT_EQ(Bytes(a.Get(entry.name)), Bytes(b.Get(entry.name))) << entry.name;
    }
    for (const auto& entry : b.entries()) EXPECT_TRUE(a.Has(entry.name)) << entry.name;
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

TEST_P(EveryFamily, ComesOutAsItWentIn) { ExpectRoundTrip(Fixture(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Fixtures, EveryFamily,
                         ::testing::Values("llama", "qwen2", "qwen3", "qwen3_moe", "deepseek_v3",
                                           "deepseek_v3_no_q_lora"),
                         [](const auto& test) { return std::string(test.param); });

// As DeepSeek-V3 is published: fp8 becomes the bf16 that torch makes of it, with the layer of
// multi-token prediction and its copies; what is exported then comes back byte for byte.
TEST_F(ImportExportTest, Fp8ComesInAsBf16AndMultiTokenPredictionGoesRound) {
  const std::string original = Folder(Fixture("deepseek_v3_fp8"));
  Run(ImportCommand, {original, root_ + "/imported"});
  Run(ExportCommand, {root_ + "/imported", root_ + "/exported"});
  const model::SafetensorsReader stored(original), got(root_ + "/exported"),
      expected(Fixture("deepseek_v3_fp8") + "/expected.safetensors");
  size_t fp8 = 0, mtp = 0;
  for (const auto& entry : stored.entries()) {
    ASSERT_TRUE(got.Has(entry.name)) << entry.name;
    const bool bias = entry.name.ends_with("e_score_correction_bias");
    EXPECT_EQ(got.Entry(entry.name).stored, bias ? "F32" : "BF16") << entry.name;
    EXPECT_EQ(Bytes(got.Get(entry.name)), Bytes(stored.Get(entry.name))) << entry.name;
    fp8 += entry.stored == "F8_E4M3";
    mtp += entry.name.starts_with("model.layers.2.");
  }
  EXPECT_EQ(got.entries().size(), stored.entries().size());
  EXPECT_EQ(fp8, 5u * 3 + 3u + 2u * 3 * (4 + 1));  // attention, the dense MLP, experts
  EXPECT_EQ(mtp, 6u + 2u + 5u + 2u + 2u + 3u * (4 + 1));
  for (const auto& entry : expected.entries()) {
    if (!entry.name.starts_with("model.")) continue;
    EXPECT_EQ(Bytes(got.Get(entry.name)), Bytes(expected.Get(entry.name))) << entry.name;
  }
  json config = ParseJson(runtime::LocalFileSystem().ReadAll(root_ + "/exported/config.json"));
  EXPECT_FALSE(config.contains("quantization_config"));
  EXPECT_EQ(config["torch_dtype"], "bfloat16");
  Run(ImportCommand, {root_ + "/exported", root_ + "/again"});
  Run(ExportCommand, {root_ + "/again", root_ + "/round"});
  ExpectEqualTensors(root_ + "/exported", root_ + "/round");
  auto& files = runtime::LocalFileSystem();
  EXPECT_EQ(files.ReadAll(root_ + "/exported/config.json"),
            files.ReadAll(root_ + "/round/config.json"));
}

TEST_F(ImportExportTest, WithoutMultiTokenPrediction) {
  const std::string original = Folder(Fixture("deepseek_v3_fp8"));
  Run(ImportCommand, {original, root_ + "/imported", "--without-mtp", "--dtype", "f32"});
  Run(ExportCommand, {root_ + "/imported", root_ + "/exported"});
  const model::SafetensorsReader stored(original), got(root_ + "/exported");
  for (const auto& entry : stored.entries()) {
    EXPECT_EQ(got.Has(entry.name), !entry.name.starts_with("model.layers.2.")) << entry.name;
    if (!got.Has(entry.name)) continue;
    const int64_t rows = entry.shape[0];
    EXPECT_EQ(Bytes(got.Get(entry.name)), Bytes(stored.Rows(entry.name, 0, rows, DType::kF32)))
        << entry.name;
  }
  json config = ParseJson(runtime::LocalFileSystem().ReadAll(root_ + "/exported/config.json"));
  EXPECT_EQ(config["num_nextn_predict_layers"], 0);
  EXPECT_EQ(config["torch_dtype"], "float32");
  // A run says so beside the folder's name, and its checkpoints know the model by that.
  const std::string stage = root_ + "/run/checkpoints/base";
  fs::create_directories(stage);
  fs::rename(root_ + "/imported", stage + "/step-000001");
  fs::remove(stage + "/step-000001/config.json");
  runtime::LocalFileSystem().WriteAtomically(
      root_ + "/run/config.yaml", "model: {hf: " + original + ", num_nextn_predict_layers: 0}\n");
  Run(ExportCommand, {stage, root_ + "/of_run"});
  ExpectEqualTensors(root_ + "/exported", root_ + "/of_run");
}

TEST_F(ImportExportTest, F16ComesInAsF32) {
  const std::string original = Folder(Fixture("llama_f16"));
  Run(ImportCommand, {original, root_ + "/imported"});
  Run(ExportCommand, {root_ + "/imported", root_ + "/exported"});
  ExpectEqualTensors(original, root_ + "/exported");  // as read: f32
  json config = ParseJson(runtime::LocalFileSystem().ReadAll(root_ + "/exported/config.json"));
  EXPECT_EQ(config["dtype"], "float32");
}

// What generate and serve load: straight from the folder, and imported.
TEST_F(ImportExportTest, StoredFormatsLoadForInference) {
  const std::string original = Folder(Fixture("deepseek_v3_fp8"));
  Run(ImportCommand, {original, root_ + "/imported"});
  rl::LoadOptions options;
  options.tokenizer = "byte";
  std::map<std::string, std::string> folder, checkpoint;
  for (auto* into : {&folder, &checkpoint}) {
    const auto model =
        rl::LoadModelForInference(into == &folder ? original : root_ + "/imported", options);
    EXPECT_EQ(model.files.dtype, DType::kBF16);
    for (const SlabTensor& s : model.stage->State()) (*into)[s.slab.name] = Bytes(s.tensor);
  }
  EXPECT_GT(checkpoint.size(), 20u);
  for (const auto& [name, bytes] : checkpoint) EXPECT_EQ(folder.at(name), bytes) << name;
}

TEST_F(ImportExportTest, Fp8WithoutItsFactorsIsNamed) {
  const std::string original = Folder(Fixture("deepseek_v3_fp8"));
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  auto& files = runtime::LocalFileSystem();
  for (const char* file : {"model-00001-of-000002.safetensors", "model.safetensors.index.json"}) {
    std::string bytes = files.ReadAll(original + "/" + file);
    const size_t at = bytes.find(name + "_scale_inv");
    ASSERT_NE(at, bytes.npos);
    bytes.replace(at, name.size() + 10, name + "_scale_xyz");
    files.WriteAtomically(original + "/" + file, bytes);
  }
  try {
    ImportCommand({original, root_ + "/imported"});
    FAIL() << "it was imported";
  } catch (const CheckpointError& e) {
    EXPECT_THAT(e.what(), HasSubstr("'" + name + "' is stored as F8_E4M3 without its factors"));
  }
}

TEST_F(ImportExportTest, OtherQuantisationsAreRefused) {
  const std::string original = Folder(Fixture("deepseek_v3_fp8"));
  auto& files = runtime::LocalFileSystem();
  const json config = ParseJson(files.ReadAll(original + "/config.json"));
  for (const auto& [key, value] :
       {std::pair<std::string, json>{"quant_method", "gptq"}, {"weight_block_size", {64, 64}}}) {
    json changed = config;
    changed["quantization_config"][key] = value;
    files.WriteAtomically(original + "/config.json", changed.dump());
    try {
      ImportCommand({original, root_ + "/imported"});
      FAIL() << "it was imported";
    } catch (const ConfigError& e) {
      EXPECT_THAT(e.what(), HasSubstr("config.json: quantization_config: field '" + key + "'"));
    }
  }
}

// A tied head that is stored all the same, as some checkpoints have it, is there again.
TEST_F(ImportExportTest, ARepeatedHeadIsKept) {
  const std::string original = Folder(Fixture("qwen2"));
  {
    const model::SafetensorsReader reader(original);
    std::vector<model::SafetensorsSource> sources;
    for (const auto& e : reader.entries()) {
      sources.push_back({e.name, e.dtype, e.shape, [&, e] { return reader.Get(e.name); }});
    }
    const auto embedding = reader.Entry(model::kEmbeddingName);
    sources.push_back({model::kHeadName, embedding.dtype, embedding.shape,
                       [&] { return reader.Get(model::kEmbeddingName); }});
    model::WriteSafetensors(root_ + "/tied.safetensors", sources);
  }
  fs::rename(root_ + "/tied.safetensors", original + "/model.safetensors");
  Run(ImportCommand, {original, root_ + "/imported"});
  Run(ExportCommand, {root_ + "/imported", root_ + "/exported"});
  EXPECT_TRUE(model::SafetensorsReader(root_ + "/exported").Has(model::kHeadName));
  ExpectEqualTensors(original, root_ + "/exported");
}

// Files that hone does not write but others read go along, byte for byte.
TEST_F(ImportExportTest, WhatBelongsToTheModelGoesAlong) {
  const std::string original = Folder(Fixture("qwen2"));
  auto& files = runtime::LocalFileSystem();
  const std::vector<std::string> names = {"generation_config.json",
                                          "tokenizer.json",
                                          "tokenizer_config.json",
                                          "vocab.json",
                                          "merges.txt",
                                          "special_tokens_map.json",
                                          "added_tokens.json",
                                          "chat_template.jinja"};
  for (const std::string& name : names) {
    files.WriteAtomically(original + "/" + name, "{ \"of\":  \"" + name + "\" }\n");
  }
  Run(ImportCommand, {original, root_ + "/imported"});
  Run(ExportCommand, {root_ + "/imported", root_ + "/exported"});
  for (const std::string& name : names) {
    EXPECT_EQ(files.ReadAll(root_ + "/exported/" + name), files.ReadAll(original + "/" + name));
  }
}

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
  const std::string original = Folder(Fixture("qwen3_moe"));
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
  const std::string original = Folder(Fixture("llama"));
  auto& files = runtime::LocalFileSystem();
  json config = ParseJson(files.ReadAll(original + "/config.json"));
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
  const std::string original = Folder(Fixture("llama"));
  EXPECT_THROW(ImportCommand({original, original}), ConfigError);
  EXPECT_TRUE(fs::exists(original + "/model.safetensors"));
}

}  // namespace
}  // namespace hone::launcher
