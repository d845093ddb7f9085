// safetensors files: a header of JSON, then raw little-endian tensors. Memory mapped; sharded folders by
// model.safetensors.index.json. Hostile headers are refused by name.
#pragma once

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

// Fills a stage's State() from a Hugging Face folder, by the family's name map. Every tensor is
// accounted for: CheckpointError names those missing, unexpected or misshapen.
class TransformerStage;
void LoadHuggingFace(const std::string& folder, TransformerStage& stage);

}  // namespace hone::model
