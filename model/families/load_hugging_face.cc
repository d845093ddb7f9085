#include <algorithm>
#include <map>
#include <set>

#include "model/families/tensor_table.h"
#include "model/safetensors.h"
#include "model/transformer_stage.h"

namespace hone::model {
namespace {

// The first few of a list, for a message.
std::string Some(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) {
    text += (i ? ", " : "") + names[i];
  }
  return names.size() > kShown ? fmt::format("{} and {} more", text, names.size() - kShown) : text;
}

// Every tensor of the folder but those that begin with `ignored` belongs to the model, with its
// shape; and every one of the model is there. Missing MTP tensors are told apart: many checkpoints
// come without them.
void CheckComplete(const std::string& folder, const ModelConfig& config,
                   const SafetensorsReader& reader, const std::string& ignored = "") {
  std::map<std::string, TensorInfo> expected;
  std::set<std::string> missing;
  for (const TensorInfo& tensor : TensorTable(config)) {
    expected[tensor.name] = tensor;
    for (const std::string& name : HuggingFaceNames(tensor)) {
      if (tensor.name != kValueHeadName) missing.insert(name);
    }
  }
  std::vector<std::string> unexpected;
  for (const SafetensorsEntry& entry : reader.entries()) {
    const std::optional<TensorPlace> place = PlaceOf(config, entry.name);
    if (!place || (!ignored.empty() && entry.name.starts_with(ignored))) continue;
    const auto it = expected.find(place->name);
    const bool known = it != expected.end() && (place->expert >= 0) == it->second.experts &&
                       (place->expert < 0 || place->expert < it->second.shape[0]);
    if (!known) {
      unexpected.push_back(entry.name);
      continue;
    }
    const Shape& global = it->second.shape;
    const Shape shape = place->expert >= 0 ? Shape(global.begin() + 1, global.end()) : global;
    Check<CheckpointError>(entry.shape == shape, "{}: tensor '{}' has shape {}, the model needs {}",
                           folder, entry.name, runtime::ShapeToString(entry.shape),
                           runtime::ShapeToString(shape));
    missing.erase(entry.name);
  }
  Check<CheckpointError>(unexpected.empty(), "{}: {} tensors the model does not have: {}", folder,
                         unexpected.size(), Some(unexpected));
  const std::vector<std::string> absent(missing.begin(), missing.end());
  const std::string mtp = fmt::format("model.layers.{}.", config.num_hidden_layers);
  const bool only_mtp = std::all_of(absent.begin(), absent.end(),
                                    [&](const std::string& n) { return n.starts_with(mtp); });
  Check<CheckpointError>(absent.empty(), "{}: {} tensors are missing: {}{}", folder, absent.size(),
                         Some(absent),
                         only_mtp ? "; set num_nextn_predict_layers to 0 to do without" : "");
}

}  // namespace

std::vector<NamedSlab> HuggingFaceSlabs(const std::string& folder, const ModelConfig& config,
                                        const SafetensorsReader& reader, bool without_mtp) {
  const std::string mtp = fmt::format("model.layers.{}.", config.num_hidden_layers);
  CheckComplete(folder, config, reader, without_mtp ? mtp : "");
  std::vector<NamedSlab> slabs;
  for (const TensorInfo& info : TensorTable(config)) {
    if (info.name == kValueHeadName) continue;
    const std::vector<std::string> names = HuggingFaceNames(info);
    for (size_t i = 0; i < names.size(); ++i) {
      Slab slab = Slab::Whole(info.name, info.shape);
      if (info.experts) {
        slab.offset[0] = static_cast<int64_t>(i);
        slab.extent[0] = 1;
      }
      slabs.push_back({names[i], {slab, reader.Get(names[i]).Reshape(slab.extent)}});
    }
  }
  return slabs;
}

void LoadHuggingFace(const std::string& folder, TransformerStage& stage) {
  const SafetensorsReader reader(folder);
  const ModelConfig& config = stage.config();
  CheckComplete(folder, config, reader);
  std::map<std::string, TensorInfo> table;
  for (const TensorInfo& tensor : TensorTable(config)) table[tensor.name] = tensor;
  for (const SlabTensor& target : stage.State()) {
    const TensorInfo& info = table.at(target.slab.name);
    if (info.name == kValueHeadName) continue;
    if (!info.experts) {
      CopyTo(reader.Get(info.name), target.tensor);
      continue;
    }
    const std::vector<std::string> names = HuggingFaceNames(info);
    for (int64_t e = 0; e < target.slab.extent[0]; ++e) {
      const Tensor one = reader.Get(names[target.slab.offset[0] + e]);
      CopyTo(one, target.tensor.Slice(e, e + 1).Reshape(one.shape()));
    }
  }
}

}  // namespace hone::model
