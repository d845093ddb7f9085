// `hone import` and `hone export`: between Hugging Face folders and checkpoints, tensor by tensor.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "model/families/tensor_table.h"
#include "model/safetensors.h"
#include "rl/loaded_model.h"
#include "runtime/checkpoint/checkpoint.h"

namespace hone::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

const std::string kModelPrefix = "model/";

// What belongs to a model beside its weights.
constexpr const char* kCompanions[] = {"generation_config.json",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "vocab.json",
                                       "merges.txt",
                                       "encoder.json",
                                       "vocab.bpe",
                                       "tokenizer.model",
                                       "tokenizer.bin",
                                       "tok512.bin",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "chat_template.jinja"};

void CopyCompanions(const fs::path& from, const fs::path& to) {
  for (const char* name : kCompanions) {
    if (!fs::exists(from / name)) continue;
    runtime::LocalFileSystem().WriteAtomically(
        (to / name).string(), runtime::LocalFileSystem().ReadAll((from / name).string()));
  }
}

void CheckFresh(const std::string& operation, const std::string& folder) {
  Check<ConfigError>(!fs::exists(folder) || (fs::is_directory(folder) && fs::is_empty(folder)),
                     "[{}] {} exists already; name a new folder", operation, folder);
}

void Report(bool json, const std::string& folder, size_t tensors, int64_t bytes) {
  if (json) {
    std::cout << ordered_json{{"path", folder}, {"tensors", tensors}, {"bytes", bytes}}.dump()
              << "\n";
  } else {
    std::cout << fmt::format("{}: {} tensors, {} bytes\n", folder, tensors, bytes);
  }
}

int Import(const std::string& from, const std::string& to, bool without_mtp, bool json) {
  CheckFresh("import", to);
  std::string config_json = runtime::LocalFileSystem().ReadAll(from + "/config.json");
  if (without_mtp) {
    ordered_json edited = ordered_json::parse(config_json, nullptr, false);
    if (edited.is_object()) edited["num_nextn_predict_layers"] = 0;
    config_json = edited.dump(2) + "\n";
  }
  auto config = model::ModelConfig::FromHuggingFaceText(config_json, from + "/config.json");
  model::SafetensorsReader reader(from);
  SlabIndex slabs;
  std::map<std::pair<std::string, int64_t>, std::string> source;  // (name, first row) → theirs
  int64_t bytes = 0;
  for (auto& [name, slab] : model::HuggingFaceSlabs(from, config, reader, without_mtp)) {
    slab.slab.name = kModelPrefix + slab.slab.name;
    source[{slab.slab.name, slab.slab.offset.empty() ? 0 : slab.slab.offset[0]}] = name;
    bytes += slab.tensor.bytes();
    slabs.push_back(std::move(slab));
  }
  runtime::CheckpointWriter::Options options;
  options.asynchronous = false;
  options.on_written = [&](const Slab& slab) {
    reader.Release(source.at({slab.name, slab.offset.empty() ? 0 : slab.offset[0]}));
  };
  runtime::CheckpointWriter writer(runtime::LocalFileSystem(),
                                   std::make_shared<runtime::SingleRank>(), options);
  writer.Save(to, {slabs, ordered_json{{"imported_from", from}}.dump()});
  CopyCompanions(from, to);
  // Last: without it the folder is not yet a model.
  runtime::LocalFileSystem().WriteAtomically(to + "/config.json", config_json);
  Report(json, to, slabs.size(), bytes);
  return 0;
}

// Tensors of a checkpoint as they are asked for: one in memory at a time.
class CheckpointTensors : public model::TensorProvider {
 public:
  explicit CheckpointTensors(const std::string& folder)
      : reader_(runtime::LocalFileSystem(), folder) {
    for (const auto& info : reader_.slabs()) {
      Kind& kind = kinds_.try_emplace(info.slab.name, Kind{info.dtype, 0}).first->second;
      ++kind.pieces;
    }
  }
  // ours that the model has no place for, optimizer state aside
  std::vector<std::string> Unexpected(const model::ModelConfig& config) const {
    std::set<std::string> known = {kModelPrefix + model::kValueHeadName};
    for (const auto& t : model::TensorTable(config)) known.insert(kModelPrefix + t.name);
    std::vector<std::string> unexpected;
    for (const auto& [name, kind] : kinds_) {
      if (name.starts_with(kModelPrefix) && !known.count(name)) unexpected.push_back(name);
    }
    return unexpected;
  }
  bool Has(const std::string& name) const { return reader_.Has(kModelPrefix + name); }

  DType DTypeOf(const std::string& name) const override { return KindOf(name).dtype; }
  Tensor Get(const model::TensorInfo& info, int64_t expert) override {
    if (expert < 0) return Load(info, 0, info.shape);
    Shape one = info.shape;
    // Imported experts lie each by itself; a learner's in larger pieces, read once.
    if (KindOf(info.name).pieces == info.shape[0]) {
      one[0] = 1;
      return Load(info, expert, one).Reshape(Shape(one.begin() + 1, one.end()));
    }
    if (name_ != info.name) {
      whole_ = Tensor();
      whole_ = Load(info, 0, info.shape);
      name_ = info.name;
    }
    return whole_.Slice(expert, expert + 1).Reshape(Shape(one.begin() + 1, one.end()));
  }

 private:
  struct Kind {
    DType dtype;
    int64_t pieces;
  };
  const Kind& KindOf(const std::string& name) const {
    auto it = kinds_.find(kModelPrefix + name);
    Check<CheckpointError>(it != kinds_.end(), "[export] tensor '{}' of the model is missing",
                           name);
    return it->second;
  }
  Tensor Load(const model::TensorInfo& info, int64_t first, const Shape& extent) {
    // Memory goes back when a tensor does: a cached block of each size would add up.
    Context host;
    Slab slab{kModelPrefix + info.name, info.shape, Shape(info.shape.size(), 0), extent};
    if (!slab.offset.empty()) slab.offset[0] = first;
    Tensor tensor = host.Empty(extent, KindOf(info.name).dtype, MemoryCategory::kOther);
    reader_.Load({{slab, tensor}});
    return tensor;
  }

  runtime::CheckpointReader reader_;
  std::map<std::string, Kind> kinds_;
  std::string name_;
  Tensor whole_;
};

int Export(const std::string& from, const std::string& to, int64_t shard_bytes, bool json) {
  CheckFresh("export", to);
  rl::ModelFiles files = rl::FindModel(from);
  Check<ConfigError>(files.checkpoint, "[export] {} is no checkpoint of hone", from);
  CheckpointTensors tensors(files.weights);
  std::vector<std::string> unexpected = tensors.Unexpected(files.config);
  Check<CheckpointError>(unexpected.empty(), "[export] {} has {} tensors the model does not: {}, …",
                         files.weights, unexpected.size(), unexpected.empty() ? "" : unexpected[0]);
  model::SaveHuggingFace(to, files.config, tensors, shard_bytes);
  if (!files.companions.empty()) {
    CopyCompanions(files.companions, to);
    // The folder that the model came from has the fields that hone does not know, too.
    fs::path original = fs::path(files.companions) / "config.json";
    if (files.companions == files.weights && fs::exists(original)) {
      runtime::LocalFileSystem().WriteAtomically(
          to + "/config.json", runtime::LocalFileSystem().ReadAll(original.string()));
    }
  }
  int64_t bytes = 0;
  model::SafetensorsReader written(to);
  for (const auto& e : written.entries()) {
    bytes += runtime::NumElements(e.shape) * runtime::DTypeSize(e.dtype);
  }
  Report(json, to, written.entries().size(), bytes);
  return 0;
}

}  // namespace

int ImportCommand(const Arguments& args) {
  std::string from, to;
  bool without_mtp = false, json = false;
  CLI::App app("A Hugging Face folder as a checkpoint", "hone import");
  app.add_option("hf_dir", from, "the folder: config.json, *.safetensors, tokenizer")->required();
  app.add_option("out", to, "the checkpoint to be made")->required();
  app.add_flag("--without-mtp", without_mtp, "leave multi-token prediction out");
  app.add_flag("--json", json, "for machines");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  return Import(from, to, without_mtp, json);
}

int ExportCommand(const Arguments& args) {
  std::string from, to;
  int64_t shard_bytes = 5'000'000'000;
  bool json = false;
  CLI::App app("A checkpoint as a Hugging Face folder", "hone export");
  app.add_option("checkpoint", from, "a checkpoint, or a run: its newest")->required();
  app.add_option("hf_dir", to, "the folder to be made")->required();
  app.add_option("--shard-bytes", shard_bytes, "of one safetensors file at most")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", json, "for machines");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  return Export(from, to, shard_bytes, json);
}

}  // namespace hone::launcher
