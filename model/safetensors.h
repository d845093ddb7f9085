// safetensors files: a header of JSON, then raw little-endian tensors. Memory mapped; sharded
// folders by model.safetensors.index.json. Hostile headers are refused by name.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/slab.h"

namespace hone::model {

struct SafetensorsEntry {
  std::string name;
  DType dtype;
  Shape shape;
  std::string file;
};

class SafetensorsReader {
 public:
  // A .safetensors file, or a folder with model.safetensors or an index.
  explicit SafetensorsReader(const std::string& path);
  ~SafetensorsReader();
  const std::vector<SafetensorsEntry>& entries() const;
  bool Has(const std::string& name) const;
  // A view of the mapped file (read only), which lives as long as the tensor.
  Tensor Get(const std::string& name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A tensor of a file to be written: `tensor` is called when its turn comes, so that only one is
// held.
struct SafetensorsSource {
  std::string name;
  DType dtype;
  Shape shape;
  std::function<Tensor()> tensor;
};
void WriteSafetensors(const std::string& path, const std::vector<SafetensorsSource>& sources);

// Fills a stage's State() from a Hugging Face folder, by the family's name map. Every tensor is
// accounted for: CheckpointError names those missing, unexpected or misshapen.
class TransformerStage;
void LoadHuggingFace(const std::string& folder, TransformerStage& stage);

// Writes a folder that transformers loads: config.json, and model.safetensors or, above
// `shard_bytes`, numbered files with an index. `state` has slabs that together cover every tensor
// of the model. A value head is left out: the format has no place for it.
struct ModelConfig;
void SaveHuggingFace(const std::string& folder, const ModelConfig& config, const SlabIndex& state,
                     int64_t shard_bytes = 5'000'000'000);

}  // namespace hone::model
