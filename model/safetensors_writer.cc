#include <map>
#include <nlohmann/json.hpp>

#include "model/safetensors.h"
#include "runtime/file_system.h"

namespace hone::model {
namespace {

using nlohmann::ordered_json;

std::string NameOfDType(DType dtype) {
  static const std::map<DType, std::string> names = {{DType::kF32, "F32"}, {DType::kBF16, "BF16"},
                                                     {DType::kF64, "F64"}, {DType::kI32, "I32"},
                                                     {DType::kI64, "I64"}, {DType::kU8, "U8"}};
  const auto it = names.find(dtype);
  Check(it != names.end(), "[safetensors] tensors of type {} are not written",
        runtime::DTypeName(dtype));
  return it->second;
}

}  // namespace

void WriteSafetensors(const std::string& path, const std::vector<SafetensorsSource>& sources) {
  ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  int64_t size = 0;
  for (const SafetensorsSource& s : sources) {
    const int64_t bytes = runtime::NumElements(s.shape) * runtime::DTypeSize(s.dtype);
    header[s.name] = {{"dtype", NameOfDType(s.dtype)},
                      {"shape", s.shape},
                      {"data_offsets", {size, size + bytes}}};
    size += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
  const uint64_t length = text.size();
  const auto file = runtime::LocalFileSystem().Open(path, runtime::OpenMode::kCreate);
  file->Write(0, &length, sizeof length);
  file->Write(sizeof length, text.data(), static_cast<int64_t>(length));
  int64_t at = static_cast<int64_t>(sizeof length + length);
  for (const SafetensorsSource& s : sources) {
    const Tensor tensor = s.tensor();
    CheckShape(tensor.shape() == s.shape && tensor.dtype() == s.dtype && tensor.contiguous(),
               "[safetensors] tensor '{}' is not what was announced", s.name);
    file->Write(at, tensor.raw(), tensor.bytes());
    at += tensor.bytes();
  }
  file->Sync();
  file->Close();
}

}  // namespace hone::model
