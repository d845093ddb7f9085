// safetensors files: a header of JSON, then raw little-endian tensors. Memory mapped; sharded
// folders by model.safetensors.index.json. Hostile headers are refused by name.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace hone::model {

struct SafetensorsEntry {
  std::string name;
  DType dtype;  // of what Get gives: as stored, but f32 for f16, and bf16 for fp8 with its factors
  Shape shape;
  std::string file;
  std::string stored;     // the format's name of the stored type: "F16"
  uint64_t position = 0;  // of its bytes in the file
};

// Const and thread safe. fp8 matrices come with their factors applied (stored_float.h): a
// NAME_scale_inv beside an F8_E4M3 NAME is no entry of its own.
class SafetensorsReader {
 public:
  // A .safetensors file, or a folder with model.safetensors or an index. CheckpointError names the
  // file and tensor that are wrong.
  explicit SafetensorsReader(const std::string& path);
  ~SafetensorsReader();
  const std::vector<SafetensorsEntry>& entries() const;  // in the order of names
  bool Has(const std::string& name) const;
  const SafetensorsEntry& Entry(const std::string& name) const;

  // Views of the mapped file (read only), which live as long as the tensor; what is stored in
  // another type, or unaligned, is in memory of its own.
  Tensor Get(const std::string& name) const;
  // Rows [begin, end) of dim 0 (a tensor without dims has one), as `dtype`.
  Tensor Rows(const std::string& name, int64_t begin, int64_t end, DType dtype) const;
  // All of it into a tensor of any float type and the same shape, a few rows at a time.
  void Read(const std::string& name, const Tensor& out) const;

  // Of rows [begin, end): starts reading the file ahead; and lets go of the pages that they were
  // read through, which come back when read again.
  void Prefetch(const std::string& name, int64_t begin, int64_t end) const;
  void Release(const std::string& name, int64_t begin, int64_t end) const;

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

}  // namespace hone::model
