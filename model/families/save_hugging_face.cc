#include <map>
#include <nlohmann/json.hpp>

#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
#include "runtime/file_system.h"

namespace hone::model {
namespace {

// Puts whole tensors together from slabs, and keeps the latest: experts are asked for one by one.
class Assembler : public TensorProvider {
 public:
  explicit Assembler(const SlabIndex& state) {
    for (const SlabTensor& s : state) by_name_[s.slab.name].push_back(s);
  }

  DType DTypeOf(const std::string& name) const override {
    return PartsOf(name).front().tensor.dtype();
  }
  Tensor Get(const TensorInfo& info, int64_t expert) override {
    if (name_ != info.name) {
      name_ = info.name;
      Context host;
      whole_ = host.Empty(info.shape, DTypeOf(info.name), MemoryCategory::kOther);
      runtime::CopySlabs(PartsOf(info.name), {{Slab::Whole(info.name, info.shape), whole_}});
    }
    if (expert < 0) return whole_;
    const Shape one(info.shape.begin() + 1, info.shape.end());
    return whole_.Slice(expert, expert + 1).Reshape(one);
  }

 private:
  const SlabIndex& PartsOf(const std::string& name) const {
    const auto it = by_name_.find(name);
    Check<CheckpointError>(it != by_name_.end(), "[export] tensor '{}' of the model is missing",
                           name);
    return it->second;
  }

  std::map<std::string, SlabIndex> by_name_;
  std::string name_;
  Tensor whole_;
};

// Whether a model is written with this name for a tensor that it repeats.
bool Repeats(const SaveOptions& options, const std::string& name) {
  if (options.repeats) return options.repeats->contains(name);
  return name != kHeadName;
}

std::vector<SafetensorsSource> Sources(const ModelConfig& config, TensorProvider& tensors,
                                       const SaveOptions& options) {
  std::vector<SafetensorsSource> sources;
  for (const TensorInfo& info : TensorTable(config)) {
    if (info.name == kValueHeadName) continue;
    std::vector<std::string> names = HuggingFaceNames(info);
    for (const std::string& repeat : RepeatsOf(config, info.name)) {
      if (Repeats(options, repeat)) names.push_back(repeat);
    }
    const Shape shape = info.experts ? Shape(info.shape.begin() + 1, info.shape.end()) : info.shape;
    for (size_t i = 0; i < names.size(); ++i) {
      const int64_t expert = info.experts ? static_cast<int64_t>(i) : -1;
      sources.push_back({names[i], tensors.DTypeOf(info.name), shape,
                         [=, &tensors] { return tensors.Get(info, expert); }});
    }
  }
  return sources;
}

int64_t Bytes(const SafetensorsSource& s) {
  return runtime::NumElements(s.shape) * runtime::DTypeSize(s.dtype);
}

}  // namespace

void SaveHuggingFace(const std::string& folder, const ModelConfig& config, const SlabIndex& state,
                     const SaveOptions& options) {
  Assembler assembler(state);
  SaveHuggingFace(folder, config, assembler, options);
}

void SaveHuggingFace(const std::string& folder, const ModelConfig& config, TensorProvider& tensors,
                     const SaveOptions& options) {
  const std::string config_json = config.ToHuggingFaceJson(tensors.DTypeOf(kEmbeddingName));
  std::vector<std::vector<SafetensorsSource>> shards(1);
  int64_t total = 0, in_shard = 0;
  for (SafetensorsSource& source : Sources(config, tensors, options)) {
    const int64_t bytes = Bytes(source);
    if (!shards.back().empty() && in_shard + bytes > options.shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    total += bytes;
    in_shard += bytes;
    shards.back().push_back(std::move(source));
  }
  FileSystem& fs = runtime::LocalFileSystem();
  fs.MakeDirs(folder);
  fs.WriteAtomically(folder + "/config.json", config_json);
  if (shards.size() == 1) {
    WriteSafetensors(folder + "/model.safetensors", shards[0]);
    return;
  }
  nlohmann::json index = {{"metadata", {{"total_size", total}}}};
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    WriteSafetensors(folder + "/" + name, shards[i]);
    for (const SafetensorsSource& s : shards[i]) index["weight_map"][s.name] = name;
  }
  fs.WriteAtomically(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace hone::model
