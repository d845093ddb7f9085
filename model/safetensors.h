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
  // The pages that a tensor was read through may be dropped from memory; they come back when read.
  void Release(const std::string& name) const;

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

// The tensors of a folder as slabs of the model's, still in the mapped files, each with its name
// there; experts one by one. Every tensor is accounted for, as above. With `without_mtp` those of
// multi-token prediction, which `config` does not have, are left out.
struct ModelConfig;
struct NamedSlab {
  std::string hugging_face_name;
  SlabTensor slab;
};
std::vector<NamedSlab> HuggingFaceSlabs(const std::string& folder, const ModelConfig& config,
                                        const SafetensorsReader& reader, bool without_mtp = false);

// Where SaveHuggingFace has a model's tensors from. Each is asked for when it is written.
struct TensorInfo;
class TensorProvider {
 public:
  virtual ~TensorProvider() = default;
  virtual DType DTypeOf(const std::string& name) const = 0;
  // One expert of a stacked tensor, without dim 0; or the whole tensor for expert −1. Contiguous.
  virtual Tensor Get(const TensorInfo& info, int64_t expert) = 0;
};

// Writes a folder that transformers loads: config.json, and model.safetensors or, above
// `shard_bytes`, numbered files with an index. `state` has slabs that together cover every tensor
// of the model. A value head is left out: the format has no place for it.
void SaveHuggingFace(const std::string& folder, const ModelConfig& config, const SlabIndex& state,
                     int64_t shard_bytes = 5'000'000'000);
void SaveHuggingFace(const std::string& folder, const ModelConfig& config, TensorProvider& tensors,
                     int64_t shard_bytes = 5'000'000'000);

}  // namespace hone::model
