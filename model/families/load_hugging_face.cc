#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "model/families/hugging_face.h"
#include "model/families/tensor_table.h"
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

std::string MtpPrefix(const ModelConfig& config) {
  return fmt::format("model.layers.{}.", config.num_hidden_layers);
}

void CheckFloat(const std::string& folder, const SafetensorsEntry& entry) {
  const bool is_float =
      entry.dtype == DType::kF32 || entry.dtype == DType::kBF16 || entry.dtype == DType::kF64;
  Check<CheckpointError>(is_float, "{}: tensor '{}' is stored as {}{}", folder, entry.name,
                         entry.stored,
                         entry.dtype == DType::kF8E4M3 ? " without its factors, weight_scale_inv"
                                                       : "; a weight is a float");
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
    if (!ignored.empty() && entry.name.starts_with(ignored)) continue;
    const std::string repeated = RepeatedTensor(config, entry.name);
    std::optional<TensorPlace> place = PlaceOf(config, entry.name);
    if (!repeated.empty()) place = TensorPlace{repeated, -1};
    if (!place) continue;
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
    CheckFloat(folder, entry);
    missing.erase(entry.name);
  }
  Check<CheckpointError>(unexpected.empty(), "{}: {} tensors the model does not have: {}", folder,
                         unexpected.size(), Some(unexpected));
  const std::vector<std::string> absent(missing.begin(), missing.end());
  const std::string mtp = MtpPrefix(config);
  const bool only_mtp = std::all_of(absent.begin(), absent.end(),
                                    [&](const std::string& n) { return n.starts_with(mtp); });
  Check<CheckpointError>(absent.empty(), "{}: {} tensors are missing: {}{}", folder, absent.size(),
                         Some(absent),
                         only_mtp ? "; set num_nextn_predict_layers to 0 to do without" : "");
}

// What repeats tensor `name` in the folder has its bytes.
void CheckRepeats(const std::string& folder, const ModelConfig& config,
                  const SafetensorsReader& reader, const std::string& name) {
  constexpr int64_t kRows = 1024;
  for (const std::string& repeat : RepeatsOf(config, name)) {
    if (!reader.Has(repeat)) continue;
    const SafetensorsEntry& entry = reader.Entry(repeat);
    const int64_t rows = entry.shape[0];
    bool same = entry.stored == reader.Entry(name).stored;
    for (int64_t begin = 0; same && begin < rows; begin += kRows) {
      const int64_t end = std::min(rows, begin + kRows);
      const Tensor a = reader.Rows(name, begin, end, entry.dtype),
                   b = reader.Rows(repeat, begin, end, entry.dtype);
      same = std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
      reader.Release(name, begin, end);
      reader.Release(repeat, begin, end);
    }
    Check<CheckpointError>(same,
                           "{}: tensor '{}' is not the same as '{}', which it repeats: a "
                           "model with both is not supported",
                           folder, repeat, name);
  }
}

// The rows [begin, end) of a tensor in the folder, and what they are of the model.
struct Part {
  std::string name;
  std::pair<std::string, uint64_t> place;  // file and position of the tensor
  int64_t begin, end;
  DType dtype;
  Slab slab;
};

// Cuts one tensor of the folder into pieces.
void CutIntoParts(const SafetensorsEntry& entry, const Slab& whole, DType dtype,
                  int64_t piece_bytes, std::vector<Part>* parts) {
  if (entry.shape.empty()) {
    parts->push_back({entry.name, {entry.file, entry.position}, 0, 1, dtype, whole});
    return;
  }
  const size_t dim = whole.extent.size() - entry.shape.size();  // past that of the experts
  const int64_t rows = entry.shape[0];
  const int64_t row_bytes =
      runtime::NumElements(entry.shape) / std::max<int64_t>(1, rows) * runtime::DTypeSize(dtype);
  const int64_t step = std::max<int64_t>(1, piece_bytes / std::max<int64_t>(1, row_bytes));
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    Part part{entry.name, {entry.file, entry.position}, begin, end, dtype, whole};
    part.slab.offset[dim] = begin;
    part.slab.extent[dim] = end - begin;
    parts->push_back(std::move(part));
  }
}

// Reads a part; its pages in the mapped file are let go with the tensor.
Tensor ReadPart(const std::shared_ptr<const SafetensorsReader>& reader, const Part& part) {
  Tensor rows = reader->Rows(part.name, part.begin, part.end, part.dtype);
  std::shared_ptr<void> release(
      nullptr, [reader, rows, part](void*) { reader->Release(part.name, part.begin, part.end); });
  return Tensor(rows.raw(), part.slab.extent, part.dtype, Device::Cpu(), std::move(release));
}

}  // namespace

std::vector<runtime::LazySlab> HuggingFaceSlabs(const std::string& folder,
                                                const ModelConfig& config,
                                                std::shared_ptr<const SafetensorsReader> reader,
                                                const SlabOptions& options) {
  CheckComplete(folder, config, *reader, options.without_mtp ? MtpPrefix(config) : "");
  auto parts = std::make_shared<std::vector<Part>>();
  for (const TensorInfo& info : TensorTable(config)) {
    if (info.name == kValueHeadName) continue;
    if (!options.without_mtp) CheckRepeats(folder, config, *reader, info.name);
    const std::vector<std::string> names = HuggingFaceNames(info);
    for (size_t i = 0; i < names.size(); ++i) {
      Slab slab = Slab::Whole(info.name, info.shape);
      if (info.experts) {
        slab.offset[0] = static_cast<int64_t>(i);
        slab.extent[0] = 1;
      }
      const SafetensorsEntry& entry = reader->Entry(names[i]);
      const DType dtype = options.dtype && !info.buffer ? *options.dtype : entry.dtype;
      CutIntoParts(entry, slab, dtype, options.piece_bytes, parts.get());
    }
  }
  // In the order of the files, so that the disk reads on.
  std::stable_sort(parts->begin(), parts->end(),
                   [](const Part& a, const Part& b) { return a.place < b.place; });
  std::vector<runtime::LazySlab> slabs;
  for (size_t i = 0; i < parts->size(); ++i) {
    const Part& part = (*parts)[i];
    slabs.push_back({part.slab, part.dtype, [reader, parts, i] {
                       if (i + 1 < parts->size()) {
                         const Part& next = (*parts)[i + 1];
                         reader->Prefetch(next.name, next.begin, next.end);
                       }
                       return ReadPart(reader, (*parts)[i]);
                     }});
  }
  return slabs;
}

std::set<std::string> RepeatsIn(const ModelConfig& config, const SafetensorsReader& reader) {
  std::set<std::string> repeats;
  for (const char* original : {kEmbeddingName, kHeadName}) {
    for (const std::string& name : RepeatsOf(config, original)) {
      if (reader.Has(name)) repeats.insert(name);
    }
  }
  return repeats;
}

void LoadHuggingFace(const std::string& folder, TransformerStage& stage) {
  const SafetensorsReader reader(folder);
  const ModelConfig& config = stage.config();
  // A model without MTP leaves the folder's behind.
  const bool without_mtp =
      config.num_nextn_predict_layers == 0 && reader.Has(MtpPrefix(config) + "eh_proj.weight");
  CheckComplete(folder, config, reader, without_mtp ? MtpPrefix(config) : "");
  std::map<std::string, TensorInfo> table;
  for (const TensorInfo& tensor : TensorTable(config)) table[tensor.name] = tensor;
  for (const SlabTensor& target : stage.State()) {
    const TensorInfo& info = table.at(target.slab.name);
    if (info.name == kValueHeadName) continue;
    if (!info.experts) {
      CheckRepeats(folder, config, reader, info.name);
      reader.Read(info.name, target.tensor);
      continue;
    }
    const std::vector<std::string> names = HuggingFaceNames(info);
    for (int64_t e = 0; e < target.slab.extent[0]; ++e) {
      const std::string& name = names[target.slab.offset[0] + e];
      reader.Read(name, target.tensor.Slice(e, e + 1).Reshape(reader.Entry(name).shape));
    }
  }
}

}  // namespace hone::model
