#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "tests/model/stage_testing.h"

namespace hone::model {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest() {
    std::string pattern = testing::TempDir() + "/safetensors-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~SafetensorsTest() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  void WriteBytes(const std::string& name, const std::string& bytes) const {
    std::ofstream(Path(name), std::ios::binary) << bytes;
  }
  void Write(const std::string& name, const std::string& header, const std::string& data) const {
    const uint64_t size = header.size();
    WriteBytes(name, std::string(reinterpret_cast<const char*>(&size), 8) + header + data);
  }
  // What is said about a file with this header and 16 bytes of data.
  std::string ErrorOf(const std::string& header) const {
    Write("bad.safetensors", header, std::string(16, 'x'));
    return ReadError("bad.safetensors");
  }
  std::string ReadError(const std::string& name) const {
    try {
      SafetensorsReader reader(Path(name));
    } catch (const CheckpointError& e) {
      return e.what();
    }
    return "";
  }
  // The tensors of a stage as a Hugging Face checkpoint has them.
  void WriteModel(const std::string& name, TransformerStage& stage,
                  const std::function<bool(const std::string&)>& keep,
                  const std::string& rename_from = "", const std::string& rename_to = "") const {
    json header;
    std::string data;
    for (const SlabTensor& s : stage.State()) {
      const TensorInfo info{s.slab.name, s.slab.global_shape,
                            s.slab.name.find(".experts.") != std::string::npos};
      const std::vector<std::string> names = HuggingFaceNames(info);
      for (size_t i = 0; i < names.size(); ++i) {
        if (!keep(names[i])) continue;
        const int64_t e = static_cast<int64_t>(i);
        const Tensor part = info.experts ? s.tensor.Slice(e, e + 1) : s.tensor;
        const Shape shape =
            info.experts ? Shape(info.shape.begin() + 1, info.shape.end()) : info.shape;
        const size_t begin = data.size();
        data.append(static_cast<const char*>(part.raw()), part.bytes());
        header[names[i] == rename_from ? rename_to : names[i]] = {
            {"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
      }
    }
    Write(name, header.dump(), data);
  }

  std::string folder_;
  Context ctx_;
};

TEST_F(SafetensorsTest, ReadsTypesAndShapesAlsoUnaligned) {
  const float values[2] = {1.5f, -2.0f};
  std::string data = "abc";  // three bytes in front: the floats are not aligned
  data.append(reinterpret_cast<const char*>(values), 8);
  const BF16 b(3.0f);
  data.append(reinterpret_cast<const char*>(&b), 2);
  Write("a.safetensors",
        R"({"__metadata__":{"format":"pt"},"u":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
        R"("f":{"dtype":"F32","shape":[1,2],"data_offsets":[3,11]},)"
        R"("b":{"dtype":"BF16","shape":[],"data_offsets":[11,13]}})",
        data);
  Tensor f, b_read;
  {
    SafetensorsReader reader(Path("a.safetensors"));
    EXPECT_EQ(reader.entries().size(), 3u);
    EXPECT_TRUE(reader.Has("f"));
    EXPECT_FALSE(reader.Has("__metadata__"));
    EXPECT_THROW(reader.Get("g"), CheckpointError);
    f = reader.Get("f");
    b_read = reader.Get("b");
    EXPECT_EQ(ToDoubles(reader.Get("u")), (std::vector<double>{'a', 'b', 'c'}));
  }
  EXPECT_EQ(f.shape(), (Shape{1, 2}));  // outlives the reader
  EXPECT_EQ(ToDoubles(f), (std::vector<double>{1.5, -2.0}));
  EXPECT_EQ(ToDoubles(b_read), (std::vector<double>{3.0}));
}

TEST_F(SafetensorsTest, HostileHeadersAreRefusedByName) {
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf("{\"a\":"), HasSubstr("not a JSON object"));
  auto entry = [&](const std::string& dtype, const std::string& shape, const std::string& at) {
    return ErrorOf("{\"w\":{\"dtype\":" + dtype + ",\"shape\":" + shape +
                   ",\"data_offsets\":" + at + "}}");
  };
  EXPECT_EQ(entry("\"F32\"", "[2,2]", "[0,16]"), "");
  EXPECT_THAT(entry("\"F32\"", "[2,2]", "[0,20]"), HasSubstr("'w': lies outside the file"));
  EXPECT_THAT(entry("\"F32\"", "[2,2]", "[16,0]"), HasSubstr("outside"));
  EXPECT_THAT(entry("\"F32\"", "[2,2]", "[0,12]"), HasSubstr("disagree"));
  EXPECT_THAT(entry("\"F32\"", "[2,2]", "[-4,12]"), HasSubstr("offset is not a whole number"));
  EXPECT_THAT(entry("\"F32\"", "[-2,-2]", "[0,16]"), HasSubstr("dim is not a whole number"));
  EXPECT_THAT(entry("\"F32\"", "[1.5]", "[0,4]"), HasSubstr("dim is not a whole number"));
  EXPECT_THAT(entry("\"F32\"", "[4611686018427387904,4]", "[0,0]"),
              HasSubstr("larger than the file"));
  EXPECT_THAT(entry("\"F32\"", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), HasSubstr("too many dims"));
  EXPECT_THAT(entry("\"C64\"", "[1]", "[0,8]"), HasSubstr("\"C64\" is not supported"));
  EXPECT_THAT(entry("7", "[1]", "[0,8]"), HasSubstr("needs dtype"));
  WriteBytes("short.safetensors", "abc");
  EXPECT_THAT(ReadError("short.safetensors"), HasSubstr("short.safetensors"));
  WriteBytes("long.safetensors", std::string(8, '\x7f') + "{}");
  EXPECT_THAT(ReadError("long.safetensors"), HasSubstr("the header is said to have"));
  EXPECT_THROW(SafetensorsReader(Path("absent.safetensors")), IoError);
  EXPECT_THROW(SafetensorsReader{folder_ + "/."}, CheckpointError);
}

TEST_F(SafetensorsTest, DataAreTheTensorsEndToEnd) {
  auto two = [&](const std::string& first, const std::string& second) {
    return ErrorOf(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":)" + first +
                   R"(},"b":{"dtype":"U8","shape":[8],"data_offsets":)" + second + "}}");
  };
  EXPECT_EQ(two("[0,8]", "[8,16]"), "");
  EXPECT_EQ(two("[8,16]", "[0,8]"), "");
  EXPECT_THAT(two("[0,8]", "[4,12]"), HasSubstr("'b' overlaps another"));
  EXPECT_THAT(two("[0,8]", "[0,8]"), HasSubstr("overlaps another"));
  const std::string half = R"("dtype":"U8","shape":[4],"data_offsets":)";
  EXPECT_THAT(ErrorOf("{\"a\":{" + half + "[0,4]},\"b\":{" + half + "[12,16]}}"),
              HasSubstr("before tensor 'b' are 8 bytes of no tensor"));
  EXPECT_THAT(ErrorOf("{\"a\":{" + half + "[0,4]}}"), HasSubstr("last 12 bytes are of no tensor"));
  EXPECT_EQ(ErrorOf(R"({"empty":{"dtype":"U8","shape":[0],"data_offsets":[8,8]},)"
                    R"("a":{"dtype":"U8","shape":[8],"data_offsets":[8,16]},)"
                    R"("b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})"),
            "");
}

TEST_F(SafetensorsTest, KeysGivenTwiceAreRefused) {
  const std::string entry = R"({"dtype":"U8","shape":[16],"data_offsets":[0,16]})";
  EXPECT_EQ(ErrorOf("{\"a\":" + entry + "}"), "");
  EXPECT_THAT(ErrorOf("{\"a\":" + entry + ",\"a\":" + entry + "}"),
              HasSubstr("'a' is there twice"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"U8","dtype":"F32","shape":[16],"data_offsets":[0,16]}})"),
              HasSubstr("'dtype' is there twice"));
  EXPECT_THAT(ErrorOf(std::string(100, '[') + std::string(100, ']')), HasSubstr("too deeply"));
}

// Every code of fp8 and f16 of all kinds, as torch reads them (fixtures/make_stored_fixtures.py).
TEST_F(SafetensorsTest, StoredFormatsAreDecodedAsTorchDoes) {
  const SafetensorsReader reader(std::string(HONE_SOURCE_DIR) +
                                 "/tests/fixtures/model/formats.safetensors");
  EXPECT_FALSE(reader.Has("f8_scale_inv"));
  EXPECT_EQ(reader.Entry("f8").dtype, DType::kBF16);
  EXPECT_EQ(reader.Entry("f16").dtype, DType::kF32);
  EXPECT_EQ(reader.Entry("f16").stored, "F16");
  for (const char* name : {"f8", "f16"}) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const std::string want_name =
          std::string(name) + (dtype == DType::kF32 ? "_as_f32" : "_as_bf16");
      const std::vector<double> want = ToDoubles(reader.Get(want_name));
      const Shape shape = reader.Entry(name).shape;
      const std::vector<double> got = ToDoubles(reader.Rows(name, 0, shape[0], dtype));
      ASSERT_EQ(got.size(), want.size());
      size_t nans = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        nans += std::isnan(want[i]);
        EXPECT_TRUE(got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i])))
            << want_name << " " << i << ": " << got[i] << " is " << want[i];
      }
      EXPECT_GT(nans, 0u);
      EXPECT_LT(nans, 100u);
    }
  }
}

// Rows by themselves, and slabs cut small as import cuts large tensors, have the bits of the whole.
TEST_F(SafetensorsTest, PiecesAreThoseOfTheWhole) {
  const std::string folder = std::string(HONE_SOURCE_DIR) + "/tests/fixtures/model/deepseek_v3_fp8";
  const auto reader = std::make_shared<const SafetensorsReader>(folder);
  for (const SafetensorsEntry& entry : reader->entries()) {
    const Tensor whole = reader->Get(entry.name);
    for (int64_t begin : {int64_t{0}, int64_t{5}, int64_t{127}, int64_t{129}}) {
      const int64_t end = std::min(begin + 3, entry.shape[0]);
      if (begin >= end) continue;
      const Tensor rows = reader->Rows(entry.name, begin, end, entry.dtype);
      EXPECT_TRUE(SameBits(rows, whole.Slice(begin, end))) << entry.name << " from " << begin;
    }
  }
  const ModelConfig config = ModelConfig::FromHuggingFace(folder + "/config.json");
  SlabOptions options;
  options.piece_bytes = 1000;
  SlabIndex pieces;
  for (const runtime::LazySlab& lazy : HuggingFaceSlabs(folder, config, reader, options)) {
    pieces.push_back({lazy.slab, lazy.tensor()});
    EXPECT_EQ(pieces.back().tensor.dtype(), lazy.dtype);
    EXPECT_LE(pieces.back().tensor.bytes(), 1000);
  }
  EXPECT_GT(pieces.size(), 250u);
  TransformerStage want(ctx_, config, WholeModel(config, DType::kBF16)),
      got(ctx_, config, WholeModel(config, DType::kBF16));
  LoadHuggingFace(folder, want);
  runtime::CopySlabs(pieces, got.State());
  const SlabIndex want_state = want.State(), got_state = got.State();
  for (size_t i = 0; i < want_state.size(); ++i) {
    EXPECT_TRUE(SameBits(want_state[i].tensor, got_state[i].tensor)) << want_state[i].slab.name;
  }
}

TEST_F(SafetensorsTest, FactorsThatDoNotFitTheirMatrixAreNamed) {
  auto error = [&](const std::string& scale) {
    return ErrorOf(R"({"w":{"dtype":"F8_E4M3","shape":[2,4],"data_offsets":[0,8]},"w_scale_inv":)" +
                   scale + "}");
  };
  EXPECT_EQ(error(R"({"dtype":"F32","shape":[2],"data_offsets":[8,16]})"),
            Path("bad.safetensors") +
                ": tensor 'w_scale_inv' is F32 [2]; w [2, 4] has f32 factors "
                "for blocks of 128 × 128");
  EXPECT_THAT(error(R"({"dtype":"F64","shape":[1,1],"data_offsets":[8,16]})"), HasSubstr("is F64"));
  // The right one; and one beside a matrix that is not fp8 is a tensor like others.
  Write("one.safetensors",
        R"({"w":{"dtype":"F8_E4M3","shape":[2,4],"data_offsets":[0,8]},)"
        R"("w_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]},)"
        R"("v_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[12,16]}})",
        std::string(8, 0x38) + std::string("\0\0\x20\x40", 4) + std::string(4, 0));
  const SafetensorsReader reader(Path("one.safetensors"));
  EXPECT_EQ(reader.entries().size(), 2u);
  EXPECT_TRUE(reader.Has("v_scale_inv"));
  EXPECT_EQ(ToDoubles(reader.Get("w")), std::vector<double>(8, 2.5));
}

TEST_F(SafetensorsTest, LoadsAShardedFolderAndRefusesABrokenOne) {
  const ModelConfig config = TinyV3();
  TransformerStage stage(ctx_, config, WholeModel(config, DType::kF32));
  FillStage(ctx_, stage, 3);
  WriteModel("one.safetensors", stage, [](const std::string& n) { return n < "model.layers.1"; });
  WriteModel("two.safetensors", stage, [](const std::string& n) { return n >= "model.layers.1"; });
  json map;
  for (const char* file : {"one.safetensors", "two.safetensors"}) {
    const SafetensorsReader reader(Path(file));
    for (const auto& e : reader.entries()) map[e.name] = file;
  }
  WriteBytes("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  // Whole, and the second half of a pipeline.
  const auto split = SplitLayers(config, 2, WholeModel(config, DType::kF32));
  for (const StageOptions& options : {WholeModel(config, DType::kF32), split[0], split[1]}) {
    TransformerStage loaded(ctx_, config, options);
    LoadHuggingFace(folder_, loaded);
    std::map<std::string, Tensor> want;
    for (const SlabTensor& s : stage.State()) want[s.slab.name] = s.tensor;
    for (const SlabTensor& s : loaded.State()) {
      EXPECT_TRUE(SameBits(s.tensor, want.at(s.slab.name))) << s.slab.name;
    }
  }
  map["model.elsewhere"] = "one.safetensors";
  WriteBytes("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  EXPECT_THROW(SafetensorsReader{folder_}, CheckpointError);
  map.erase("model.elsewhere");
  map["model.norm.weight"] =
      map["model.norm.weight"] == "one.safetensors" ? "two.safetensors" : "one.safetensors";
  WriteBytes("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  EXPECT_THROW(SafetensorsReader{folder_}, CheckpointError);
  map["model.norm.weight"] = "../one.safetensors";
  WriteBytes("model.safetensors.index.json", json{{"weight_map", map}}.dump());
  EXPECT_THROW(SafetensorsReader{folder_}, CheckpointError);
}

TEST_F(SafetensorsTest, SavedFoldersLoadWithTheSameBits) {
  ModelConfig tied = TinyTied();  // attention bias with QK norm is no family's; take one of Qwen3
  tied.family = Family::kQwen3;
  tied.attention_bias = false;
  for (const ModelConfig& config : {TinyV3(), tied}) {
    for (int64_t shard_bytes : {int64_t{1} << 30, int64_t{4000}}) {
      for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
        std::filesystem::remove(Path(name));
      }
      // From the slabs of two stages, in bf16.
      SlabIndex state;
      const auto split = SplitLayers(config, 2, WholeModel(config, DType::kBF16));
      TransformerStage first(ctx_, config, split[0]), second(ctx_, config, split[1]);
      for (TransformerStage* stage : {&first, &second}) {
        FillStage(ctx_, *stage, 3);
        for (const SlabTensor& s : stage->State()) state.push_back(s);
      }
      SaveHuggingFace(folder_, config, state, {shard_bytes, {}});
      EXPECT_EQ(std::filesystem::exists(Path("model.safetensors")), shard_bytes > 4000);
      const ModelConfig read = ModelConfig::FromHuggingFace(Path("config.json"));
      EXPECT_EQ(read.ToHuggingFaceJson(), config.ToHuggingFaceJson());
      TransformerStage loaded(ctx_, config, WholeModel(config, DType::kBF16));
      LoadHuggingFace(folder_, loaded);
      std::map<std::string, Tensor> want;
      for (const SlabTensor& s : state) want[s.slab.name] = s.tensor;
      for (const SlabTensor& s : loaded.State()) {
        if (s.slab.name == kValueHeadName) continue;
        EXPECT_TRUE(SameBits(s.tensor, want.at(s.slab.name))) << s.slab.name;
      }
      state.erase(state.begin() + 1);
      EXPECT_THROW(SaveHuggingFace(folder_, config, state), CheckpointError);
    }
  }
}

TEST_F(SafetensorsTest, MissingUnexpectedAndMisshapenTensorsAreNamed) {
  const ModelConfig config = TinyV3();
  TransformerStage stage(ctx_, config, WholeModel(config, DType::kF32));
  auto load = [&](const ModelConfig& c) -> std::string {
    TransformerStage target(ctx_, c, WholeModel(c, DType::kF32));
    try {
      LoadHuggingFace(folder_, target);
    } catch (const CheckpointError& e) {
      return e.what();
    }
    return "";
  };
  WriteModel("model.safetensors", stage, [](const std::string&) { return true; });
  EXPECT_EQ(load(config), "");
  ModelConfig other = config;
  other.num_nextn_predict_layers = 0;
  EXPECT_EQ(load(other), "") << "the folder's MTP is left behind";
  other.num_hidden_layers -= 1;
  EXPECT_THAT(load(other), HasSubstr("does not have: model.layers.2."));
  other = config;
  other.vocab_size += 1;
  EXPECT_THAT(load(other), HasSubstr("has shape [23, 12], the model needs [24, 12]"));
  const std::string expert = "model.layers.2.mlp.experts.5.up_proj.weight";
  WriteModel("model.safetensors", stage, [&](const std::string& n) { return n != expert; });
  EXPECT_THAT(load(config), HasSubstr("missing: " + expert));
  WriteModel(
      "model.safetensors", stage, [](const std::string&) { return true; }, "lm_head.weight",
      "lm_head.wait");
  EXPECT_THAT(load(config), HasSubstr("does not have: lm_head.wait"));
  WriteModel("model.safetensors", stage,
             [](const std::string& n) { return !n.starts_with("model.layers.3."); });
  EXPECT_THAT(load(config), HasSubstr("set num_nextn_predict_layers to 0"));
  other = config;
  other.num_nextn_predict_layers = 0;
  EXPECT_EQ(load(other), "");
}

// Published checkpoints repeat embedding and head for multi-token prediction: as copies only.
TEST_F(SafetensorsTest, ACopyThatDiffersIsNamed) {
  const ModelConfig config = TinyV3();
  TransformerStage stage(ctx_, config, WholeModel(config, DType::kF32));
  FillStage(ctx_, stage, 3);
  auto load = [&]() -> std::string {
    try {
      LoadHuggingFace(folder_, stage);
    } catch (const CheckpointError& e) {
      return e.what();
    }
    return "";
  };
  const std::string copy = "model.layers.3.embed_tokens.weight";
  SaveHuggingFace(folder_, config, stage.State());
  EXPECT_TRUE(SafetensorsReader(folder_).Has(copy));
  EXPECT_TRUE(SafetensorsReader(folder_).Has("model.layers.3.shared_head.head.weight"));
  EXPECT_EQ(load(), "");
  SaveHuggingFace(folder_, config, stage.State(), {1 << 30, std::set<std::string>{}});
  EXPECT_FALSE(SafetensorsReader(folder_).Has(copy));
  EXPECT_EQ(load(), "");
  for (const Shape& shape : {Shape{23, 12}, Shape{22, 12}}) {
    WriteModel(
        "model.safetensors", stage, [](const std::string&) { return true; }, "", "");
    std::vector<SafetensorsSource> sources;
    const Tensor zeros = ctx_.Zeros(shape, DType::kF32, MemoryCategory::kOther);
    const SafetensorsReader whole(Path("model.safetensors"));
    for (const auto& e : whole.entries()) {
      sources.push_back({e.name, e.dtype, e.shape, [&, e] { return whole.Get(e.name); }});
    }
    sources.push_back({copy, DType::kF32, shape, [&] { return zeros; }});
    WriteSafetensors(Path("other.safetensors"), sources);
    std::filesystem::rename(Path("other.safetensors"), Path("model.safetensors"));
    EXPECT_THAT(load(), HasSubstr("tensor '" + copy + "'"));
    EXPECT_THAT(load(), HasSubstr(shape[0] == 23 ? "is not the same as" : "has shape [22, 12]"));
  }
}

}  // namespace
}  // namespace hone::model
