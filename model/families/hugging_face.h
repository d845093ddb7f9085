// Models from and to Hugging Face folders, by the families' name tables. Every tensor is accounted
// for: CheckpointError names those missing, unexpected or misshapen, and a copy of another tensor
// that differs from it.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model/safetensors.h"
#include "runtime/lazy_slab.h"

namespace hone::model {

struct ModelConfig;
struct TensorInfo;
class TransformerStage;

// Fills a stage's State().
void LoadHuggingFace(const std::string& folder, TransformerStage& stage);

struct SlabOptions {
  bool without_mtp = false;        // leave those out that multi-token prediction alone has
  std::optional<DType> dtype;      // of all floats but buffers, instead of the stored one
  int64_t piece_bytes = 64 << 20;  // a slab is at most about this large, and at least a row
};
// The tensors of a folder as slabs of the model's: in pieces, experts one by one, each read from
// the mapped files when it is asked for. Asking in order reads ahead; the pages of a tensor are let
// go when it is.
std::vector<runtime::LazySlab> HuggingFaceSlabs(const std::string& folder,
                                                const ModelConfig& config,
                                                std::shared_ptr<const SafetensorsReader> reader,
                                                const SlabOptions& options = {});
// The names in the folder that repeat other tensors (RepeatedTensor in tensor_table.h).
std::set<std::string> RepeatsIn(const ModelConfig& config, const SafetensorsReader& reader);

// Where SaveHuggingFace has a model's tensors from. Each is asked for when it is written.
class TensorProvider {
 public:
  virtual ~TensorProvider() = default;
  virtual DType DTypeOf(const std::string& name) const = 0;
  // One expert of a stacked tensor, without dim 0; or the whole tensor for expert −1. Contiguous.
  virtual Tensor Get(const TensorInfo& info, int64_t expert) = 0;
};

struct SaveOptions {
  int64_t shard_bytes = 5'000'000'000;
  // Which repeats to write. Otherwise those of multi-token prediction, as published checkpoints do.
  std::optional<std::set<std::string>> repeats;
};
// Writes a folder that transformers loads: config.json, and model.safetensors or, above
// `shard_bytes`, numbered files with an index. `state` has slabs that together cover every tensor
// of the model. A value head is left out: the format has no place for it.
void SaveHuggingFace(const std::string& folder, const ModelConfig& config, const SlabIndex& state,
                     const SaveOptions& options = {});
void SaveHuggingFace(const std::string& folder, const ModelConfig& config, TensorProvider& tensors,
                     const SaveOptions& options = {});

}  // namespace hone::model
