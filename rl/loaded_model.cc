#include "rl/loaded_model.h"

#include <algorithm>
#include <filesystem>

#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "rl/run_directory.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/config.h"
#include "runtime/json.h"

namespace hone::rl {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

bool IsCheckpoint(const fs::path& folder) { return fs::exists(folder / "index.h5"); }

// The newest complete checkpoint of a stage; "" when there is none.
fs::path NewestOf(const fs::path& stage) {
  if (!fs::is_directory(stage)) return "";
  auto steps = runtime::ListCheckpointSteps(runtime::LocalFileSystem(), stage.string());
  return steps.empty() ? fs::path() : stage / runtime::CheckpointStepName(steps.back());
}

// The checkpoint that `path` names: itself, the newest of a stage, or of a run's last stage.
fs::path CheckpointAt(const fs::path& path) {
  if (IsCheckpoint(path)) return path;
  if (fs::exists(path / "state.json")) {
    RunDirectory run(runtime::LocalFileSystem(), path.string());
    RunState state = run.ReadState();
    for (auto stage = state.stages.rbegin(); stage != state.stages.rend(); ++stage) {
      fs::path found = NewestOf(run.checkpoints(stage->name));
      if (!found.empty()) return found;
    }
    return "";
  }
  return NewestOf(path);
}

bool HasTokenizer(const fs::path& folder) {
  for (const char* name : {"tokenizer.json", "vocab.json", "encoder.json", "tokenizer.model",
                           "tokenizer.bin", "tok512.bin"}) {
    if (fs::exists(folder / name)) return true;
  }
  return false;
}

void ReadCompanions(const fs::path& folder, ModelFiles* files) {
  files->companions = folder.string();
  files->config = model::ModelConfig::FromHuggingFace((folder / "config.json").string());
  if (HasTokenizer(folder)) files->tokenizer = folder.string();
}

// The model part of RUN/config.yaml: data that the stages name need not be there.
void ReadFromRun(const fs::path& config_yaml, ModelFiles* files) {
  ConfigReader root(Config::FromFile(config_yaml.string()));
  std::string hf;
  ConfigReader& model = root.Map("model");
  model.Optional("hf", &hf);
  if (hf.empty()) {
    files->config.Read(model);
  } else {
    ReadCompanions(hf, files);
    files->config.ReadBeside(model);
  }
  files->tokenizer = "byte";
  root.Optional("tokenizer", &files->tokenizer);
  if (files->tokenizer == "hf") files->tokenizer = hf;
  root.Optional("special_tokens", &files->special_tokens);
  if (fs::is_directory(files->tokenizer)) files->companions = files->tokenizer;
}

void ReadCheckpoint(const fs::path& folder, ModelFiles* files) {
  files->weights = folder.string();
  files->checkpoint = true;
  fs::path run = fs::absolute(folder).lexically_normal();
  if (!run.has_filename()) run = run.parent_path();
  run = run.parent_path().parent_path().parent_path();
  if (fs::exists(folder / "config.json")) {
    ReadCompanions(folder, files);
  } else {
    Check<ConfigError>(fs::exists(run / "config.yaml"),
                       "[model] {} has no config.json, and {} does not exist: a checkpoint is read "
                       "where its run or `hone import` put it",
                       folder.string(), (run / "config.yaml").string());
    ReadFromRun(run / "config.yaml", files);
  }
  runtime::CheckpointReader reader(runtime::LocalFileSystem(), folder.string());
  const std::string embedding = std::string(model::kModelPrefix) + model::kEmbeddingName;
  for (const auto& info : reader.slabs()) {
    if (info.slab.name == embedding) files->dtype = info.dtype;
  }
}

void ReadHuggingFace(const fs::path& folder, ModelFiles* files) {
  files->weights = folder.string();
  ReadCompanions(folder, files);
  model::SafetensorsReader reader(folder.string());
  if (reader.Has(model::kEmbeddingName)) files->dtype = reader.Entry(model::kEmbeddingName).dtype;
  const std::string mtp = fmt::format("model.layers.{}.", files->config.num_hidden_layers);
  const auto& entries = reader.entries();
  if (std::none_of(entries.begin(), entries.end(),
                   [&](const auto& e) { return e.name.starts_with(mtp); })) {
    files->config.num_nextn_predict_layers = 0;
  }
}

// One id or a list of them.
void AddStopIds(const fs::path& file, std::vector<int32_t>* ids) {
  if (!fs::exists(file)) return;
  json config = runtime::TryParseJson(runtime::LocalFileSystem().ReadAll(file.string()));
  if (!config.is_object() || !config.contains("eos_token_id")) return;
  json eos = config["eos_token_id"];
  if (!eos.is_array()) eos = json::array({eos});
  for (const json& id : eos) {
    if (id.is_number_integer()) ids->push_back(id.get<int32_t>());
  }
}

std::vector<int32_t> StopIds(const LoadedModel& model) {
  std::vector<int32_t> ids;
  if (model.tokenizer->eos_id() >= 0) ids.push_back(model.tokenizer->eos_id());
  if (!model.files.companions.empty()) {
    AddStopIds(model.files.companions + "/config.json", &ids);
    AddStopIds(model.files.companions + "/generation_config.json", &ids);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::optional<data::ChatTemplate> FindTemplate(const std::string& named,
                                               const std::string& folder) {
  if (!named.empty()) return data::ChatTemplate::Load(named);
  if (folder.empty()) return std::nullopt;
  bool has = fs::exists(folder + "/chat_template.jinja");
  if (!has && fs::exists(folder + "/tokenizer_config.json")) {
    json config = runtime::TryParseJson(
        runtime::LocalFileSystem().ReadAll(folder + "/tokenizer_config.json"));
    has = config.is_object() && config.contains("chat_template");
  }
  if (!has) return std::nullopt;
  return data::ChatTemplate::FromFolder(folder);
}

void LoadWeights(LoadedModel* model) {
  if (!model->files.checkpoint) {
    model::LoadHuggingFace(model->files.weights, *model->stage);
    return;
  }
  SlabIndex wanted = model->stage->State();
  for (SlabTensor& s : wanted) s.slab.name = model::kModelPrefix + s.slab.name;
  runtime::CheckpointReader(runtime::LocalFileSystem(), model->files.weights).Load(wanted);
}

}  // namespace

ModelFiles FindModel(const std::string& path) {
  Check<ConfigError>(fs::is_directory(path), "[model] {} is not a folder", path);
  ModelFiles files;
  fs::path checkpoint = CheckpointAt(path);
  if (!checkpoint.empty()) {
    ReadCheckpoint(checkpoint, &files);
  } else {
    Check<ConfigError>(fs::exists(fs::path(path) / "config.json"),
                       "[model] {} is no Hugging Face folder (config.json), no checkpoint "
                       "(index.h5) and no run with a checkpoint",
                       path);
    ReadHuggingFace(path, &files);
  }
  return files;
}

std::string FolderOfPolicy(const std::string& path) {
  fs::path checkpoint = CheckpointAt(path);
  if (!checkpoint.empty()) return checkpoint.string();
  Check<ConfigError>(fs::exists(fs::path(path) / "config.json"),
                     "there is no checkpoint (index.h5), no stage or run with one, and no Hugging "
                     "Face folder (config.json) at {}",
                     path);
  return path;
}

std::string LoadedModel::TokenBytes(int32_t id) const {
  return id < tokenizer->vocab_size() ? tokenizer->TokenBytes(id) : "\xEF\xBF\xBD";
}

LoadedModel MakeModel(const ModelFiles& files, const LoadOptions& options) {
  LoadedModel model;
  model.files = files;
  const std::string spec = options.tokenizer.empty() ? files.tokenizer : options.tokenizer;
  Check<ConfigError>(!spec.empty(), "[model] {} has no tokenizer; name one with --tokenizer",
                     files.weights);
  model.tokenizer = data::LoadTokenizer(spec, model.files.special_tokens);
  model.chat_template = FindTemplate(options.chat_template, model.files.companions);
  model.stop_ids = StopIds(model);
  model::ModelConfig& config = model.files.config;
  config.value_head = false;
  if (model.files.checkpoint) config.num_nextn_predict_layers = 0;
  model.ctx = std::make_unique<Context>(Device::Cpu(), options.threads);
  model::StageOptions stage;
  stage.end_layer = config.num_hidden_layers;
  stage.dtype = model.files.dtype;
  stage.with_gradients = false;
  if (options.absorb) stage.mla_decode = model::MlaDecode::kAbsorb;
  model.stage = std::make_unique<model::TransformerStage>(*model.ctx, config, stage);
  return model;
}

LoadedModel LoadModelForInference(const std::string& path, const LoadOptions& options) {
  LoadedModel model = MakeModel(FindModel(path), options);
  LoadWeights(&model);
  return model;
}

}  // namespace hone::rl
