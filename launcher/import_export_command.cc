// `hone import` and `hone export`: between Hugging Face folders and checkpoints, tensor by tensor.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>
#include <set>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "rl/loaded_model.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/json.h"

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

struct ImportOptions {
  bool without_mtp = false;
  std::optional<DType> dtype;
};

// config.json of what is imported: as it was, but for what importing changed.
std::string ImportedConfig(const std::string& text, const ImportOptions& options,
                           std::optional<DType> converted_to) {
  ordered_json config = runtime::TryParseJson<ordered_json>(text);
  if (!config.is_object() || (!options.without_mtp && !converted_to)) return text;
  if (options.without_mtp) config["num_nextn_predict_layers"] = 0;
  if (converted_to) {
    config.erase("quantization_config");
    const char* key = config.contains("dtype") ? "dtype" : "torch_dtype";
    config[key] = model::HuggingFaceDTypeName(*converted_to);
  }
  return config.dump(2) + "\n";
}

// The type that the weights have now, when some of them are not stored as they are kept.
std::optional<DType> ConvertedTo(const model::SafetensorsReader& reader,
                                 const ImportOptions& options) {
  if (options.dtype) return options.dtype;
  for (const auto& entry : reader.entries()) {
    const bool as_stored = entry.stored != "F16" && entry.stored != "F8_E4M3";
    if (!as_stored) return entry.dtype;
  }
  return std::nullopt;
}

int Import(const std::string& from, const std::string& to, const ImportOptions& options,
           bool json) {
  CheckFresh("import", to);
  const std::string config_json = runtime::LocalFileSystem().ReadAll(from + "/config.json");
  auto config = model::ModelConfig::FromHuggingFaceText(config_json, from + "/config.json");
  if (options.without_mtp) config.num_nextn_predict_layers = 0;
  auto reader = std::make_shared<const model::SafetensorsReader>(from);
  model::SlabOptions slab_options;
  slab_options.without_mtp = options.without_mtp;
  slab_options.dtype = options.dtype;
  runtime::CheckpointContents contents;
  contents.lazy = model::HuggingFaceSlabs(from, config, reader, slab_options);
  std::set<std::string> tensors;
  int64_t bytes = 0;
  for (runtime::LazySlab& lazy : contents.lazy) {
    lazy.slab.name = kModelPrefix + lazy.slab.name;
    bytes += lazy.slab.size() * runtime::DTypeSize(lazy.dtype);
    tensors.insert(lazy.slab.name);
  }
  contents.metadata =
      ordered_json{{"imported_from", from}, {"repeats", model::RepeatsIn(config, *reader)}}.dump();
  runtime::CheckpointWriter::Options writing;
  writing.asynchronous = false;
  runtime::CheckpointWriter writer(runtime::LocalFileSystem(),
                                   std::make_shared<runtime::SingleRank>(), writing);
  writer.Save(to, contents);
  CopyCompanions(from, to);
  // Last: without it the folder is not yet a model.
  runtime::LocalFileSystem().WriteAtomically(
      to + "/config.json", ImportedConfig(config_json, options, ConvertedTo(*reader, options)));
  Report(json, to, tensors.size(), bytes);
  return 0;
}

// Tensors of a checkpoint as they are asked for: one in memory at a time.
class CheckpointTensors : public model::TensorProvider {
 public:
  explicit CheckpointTensors(const std::string& folder)
      : reader_(runtime::LocalFileSystem(), folder) {
    for (const auto& info : reader_.slabs()) {
      dtypes_.try_emplace(info.slab.name, info.dtype);
    }
  }
  // ours that the model has no place for, optimizer state aside
  std::vector<std::string> Unexpected(const model::ModelConfig& config) const {
    std::set<std::string> known = {kModelPrefix + model::kValueHeadName};
    for (const auto& t : model::TensorTable(config)) known.insert(kModelPrefix + t.name);
    std::vector<std::string> unexpected;
    for (const auto& [name, dtype] : dtypes_) {
      if (name.starts_with(kModelPrefix) && !known.count(name)) unexpected.push_back(name);
    }
    return unexpected;
  }

  DType DTypeOf(const std::string& name) const override {
    auto it = dtypes_.find(kModelPrefix + name);
    Check<CheckpointError>(it != dtypes_.end(), "[export] tensor '{}' of the model is missing",
                           name);
    return it->second;
  }
  Tensor Get(const model::TensorInfo& info, int64_t expert) override {
    if (expert < 0) return Load(info, 0, info.shape);
    Shape one = info.shape;
    one[0] = 1;
    return Load(info, expert, one).Reshape(Shape(one.begin() + 1, one.end()));
  }
  // What the folder that it was imported from repeated; nullopt when it was not imported.
  std::optional<std::set<std::string>> Repeats() const {
    const ordered_json metadata = runtime::TryParseJson<ordered_json>(reader_.metadata());
    if (!metadata.is_object() || !metadata.contains("repeats")) return std::nullopt;
    return metadata["repeats"].get<std::set<std::string>>();
  }

 private:
  Tensor Load(const model::TensorInfo& info, int64_t first, const Shape& extent) {
    // Memory goes back when a tensor does: a cached block of each size would add up.
    Context host;
    Slab slab{kModelPrefix + info.name, info.shape, Shape(info.shape.size(), 0), extent};
    if (!slab.offset.empty()) slab.offset[0] = first;
    Tensor tensor = host.Empty(extent, DTypeOf(info.name), MemoryCategory::kOther);
    reader_.Load({{slab, tensor}});
    return tensor;
  }

  runtime::CheckpointReader reader_;
  std::map<std::string, DType> dtypes_;
};

int Export(const std::string& from, const std::string& to, int64_t shard_bytes, bool json) {
  CheckFresh("export", to);
  rl::ModelFiles files = rl::FindModel(from);
  Check<ConfigError>(files.checkpoint, "[export] {} is no checkpoint of hone", from);
  CheckpointTensors tensors(files.weights);
  std::vector<std::string> unexpected = tensors.Unexpected(files.config);
  Check<CheckpointError>(unexpected.empty(), "[export] {} has {} tensors the model does not: {}, …",
                         files.weights, unexpected.size(), unexpected.empty() ? "" : unexpected[0]);
  model::SaveHuggingFace(to, files.config, tensors, {shard_bytes, tensors.Repeats()});
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
  std::string dtype;
  ImportOptions options;
  bool json = false;
  CLI::App app("A Hugging Face folder as a checkpoint", "hone import");
  app.add_option("hf_dir", from, "the folder: config.json, *.safetensors, tokenizer")->required();
  app.add_option("out", to, "the checkpoint to be made")->required();
  app.add_flag("--without-mtp", options.without_mtp, "leave multi-token prediction out");
  app.add_option("--dtype", dtype, "of the weights (as stored, but f16 as f32 and fp8 as bf16)")
      ->check(CLI::IsMember({"f32", "bf16"}));
  app.add_flag("--json", json, "for machines");
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  if (!dtype.empty()) options.dtype = runtime::DTypeFromName(dtype);
  return Import(from, to, options, json);
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
