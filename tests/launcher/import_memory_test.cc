// timeout: 300
// How much memory `hone import` and `hone export` take: at most twice the largest tensor of the
// folder and 200 MB, whatever the model's size. The model here has 700 MB, in tensors of 2 MB; a
// learner's checkpoint has its experts in stacks of 235 MB.
#include <gtest/gtest.h>

#include <cstring>

#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "model/model_config.h"
#include "model/transformer_stage.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/philox.h"
#include "tests/launcher/program.h"

namespace hone::launcher {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLargest = 1024 * 1024 * 2;  // the embedding, bf16
constexpr int64_t kBound = 2 * kLargest + 200'000'000;

model::ModelConfig ManyExperts() {
  return model::ModelConfig::FromHuggingFaceText(R"({
    "model_type": "qwen3_moe", "hidden_size": 1024, "num_hidden_layers": 1,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1024,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "num_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 448})",
                                                 "config");
}

// Each tensor and expert has bytes of its own.
class Synthetic : public model::TensorProvider {
 public:
  DType DTypeOf(const std::string&) const override { return DType::kBF16; }
  Tensor Get(const model::TensorInfo& info, int64_t expert) override {
    const Shape shape = expert < 0 ? info.shape : Shape(info.shape.begin() + 1, info.shape.end());
    Tensor out = host_.Empty(shape, DType::kBF16);
    uint64_t state = HashName(info.name) + static_cast<uint64_t>(expert);
    auto* bits = static_cast<uint16_t*>(out.raw());
    for (int64_t i = 0; i < out.size(); ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      bits[i] = static_cast<uint16_t>(0x3c00 + (state >> 48) % 256);
    }
    return out;
  }

 private:
  Context host_;
};

// The most memory that the program had at a time, in bytes, files that it maps included.
int64_t PeakOf(const Words& arguments, const std::string& output) {
  Program program(HoneCommand(0, arguments), output);
  const std::string status = "/proc/" + std::to_string(program.pid()) + "/status";
  int64_t peak = 0;
  for (int i = 0; i < 60'000 && !program.Ended(); ++i) {
    const std::string text = ReadFile(status);
    const size_t at = text.find("VmHWM:");
    if (at != text.npos) peak = std::stoll(text.substr(at + 6)) * 1024;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_EQ(program.Wait(), 0) << program.output();
  return peak;
}

void ExpectEqual(const std::string& a_folder, const std::string& b_folder) {
  const model::SafetensorsReader a(a_folder), b(b_folder);
  ASSERT_EQ(a.entries().size(), b.entries().size());
  for (const auto& entry : a.entries()) {
    const Tensor x = a.Get(entry.name), y = b.Get(entry.name);
    ASSERT_EQ(x.bytes(), y.bytes()) << entry.name;
    EXPECT_EQ(std::memcmp(x.raw(), y.raw(), static_cast<size_t>(x.bytes())), 0) << entry.name;
  }
}

class ImportMemoryTest : public ::testing::Test {
 protected:
  ImportMemoryTest() {
    std::string name = fs::temp_directory_path().string() + "/hone-test-XXXXXX";
    root_ = ::mkdtemp(name.data());
    Synthetic tensors;
    model::SaveHuggingFace(root_ + "/hf", ManyExperts(), tensors, {200'000'000, {}});
  }
  ~ImportMemoryTest() override { fs::remove_all(root_); }

  std::string root_;
};

TEST_F(ImportMemoryTest, ImportAndExportKeepToTheBound) {
  const int64_t import = PeakOf({"import", root_ + "/hf", root_ + "/in"}, root_ + "/log");
  EXPECT_LE(import, kBound);
  EXPECT_GT(import, 10'000'000);  // it was seen at all
  const int64_t out = PeakOf({"export", root_ + "/in", root_ + "/out"}, root_ + "/log");
  EXPECT_LE(out, kBound);
  EXPECT_GT(out, 10'000'000);
  ExpectEqual(root_ + "/hf", root_ + "/out");
}

TEST_F(ImportMemoryTest, StackedExpertsAreExportedOneByOne) {
  const model::ModelConfig config = ManyExperts();
  Context ctx;
  model::StageOptions options;
  options.end_layer = config.num_hidden_layers;
  options.dtype = DType::kBF16;
  options.with_gradients = false;
  {
    model::TransformerStage stage(ctx, config, options);
    model::LoadHuggingFace(root_ + "/hf", stage);
    SlabIndex slabs = stage.State();
    for (SlabTensor& s : slabs) s.slab.name = "model/" + s.slab.name;
    runtime::CheckpointWriter::Options writing;
    writing.asynchronous = false;
    runtime::CheckpointWriter(runtime::LocalFileSystem(), std::make_shared<runtime::SingleRank>(),
                              writing)
        .Save(root_ + "/trained", {slabs, "{}"});
  }
  fs::copy(root_ + "/hf/config.json", root_ + "/trained/config.json");
  EXPECT_LE(PeakOf({"export", root_ + "/trained", root_ + "/out"}, root_ + "/log"), kBound);
  ExpectEqual(root_ + "/hf", root_ + "/out");
}

}  // namespace
}  // namespace hone::launcher
