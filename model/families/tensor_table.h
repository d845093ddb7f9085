// The names and shapes of every tensor of a model, as a function of its config; and how Hugging
// Face checkpoints spell them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "runtime/tensor.h"

namespace hone::model {

inline constexpr char kModelPrefix[] = "model/";  // of these names in hone's own checkpoints
inline constexpr char kEmbeddingName[] = "model.embed_tokens.weight";
inline constexpr char kHeadName[] = "lm_head.weight";
inline constexpr char kValueHeadName[] =
    "value_head.weight";  // hone's own: in no published checkpoint

struct TensorInfo {
  std::string name;      // as in ParamSpec
  Shape shape;           // global
  bool experts = false;  // stacked along dim 0, one entry an expert
  bool buffer = false;
  bool mtp = false;
};
// In the order in which they are used: embedding, layers, norm, head, multi-token prediction.
std::vector<TensorInfo> TensorTable(const ModelConfig& config);

// Where a tensor of a Hugging Face checkpoint goes.
struct TensorPlace {
  std::string name;     // of a TensorInfo
  int64_t expert = -1;  // its index in a stacked tensor, or −1 for the whole tensor
};
// nullopt for tensors that repeat others: a tied lm_head, MTP's copies of embedding and head, and
// precomputed rotary frequencies. A name unknown to the family comes back as it is.
std::optional<TensorPlace> PlaceOf(const ModelConfig& config, const std::string& hugging_face_name);
// The name of the tensor that one of a checkpoint repeats: a tied lm_head, MTP's copies of
// embedding and head. "" for all others.
std::string RepeatedTensor(const ModelConfig& config, const std::string& hugging_face_name);
// All names that repeat this one when they are there.
std::vector<std::string> RepeatsOf(const ModelConfig& config, const std::string& name);
// The inverse of PlaceOf: the checkpoint's names of one of our tensors, one an expert where
// stacked.
std::vector<std::string> HuggingFaceNames(const TensorInfo& tensor);

}  // namespace hone::model
