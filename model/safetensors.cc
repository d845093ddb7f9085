#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "runtime/file_system.h"

namespace hone::model {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t kMaxHeader = 100 << 20;  // as the format's own library refuses
constexpr int64_t kMaxDims = 8;

// A file mapped for reading.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    Check<IoError>(fd >= 0, "{}: cannot be opened: {}", path, std::strerror(errno));
    struct stat info {};
    const bool ok = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    size_ = ok ? static_cast<uint64_t>(info.st_size) : 0;
    data_ = size_ > 0 ? ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    ::close(fd);
    Check<IoError>(data_ != MAP_FAILED, "{}: cannot be mapped ({} bytes)", path, size_);
  }
  ~Mapping() { ::munmap(data_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  char* data() const { return static_cast<char*>(data_); }
  uint64_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  uint64_t size_ = 0;
};

// nullopt for a type hone has no tensors of; such an entry is an error only when it is read.
std::optional<DType> DTypeOfName(const std::string& name) {
  static const std::map<std::string, DType> names = {
      {"F32", DType::kF32},       {"BF16", DType::kBF16}, {"F64", DType::kF64},
      {"I32", DType::kI32},       {"I64", DType::kI64},   {"U8", DType::kU8},
      {"F8_E4M3", DType::kF8E4M3}};
  const auto it = names.find(name);
  return it == names.end() ? std::nullopt : std::optional(it->second);
}

std::string NameOfDType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF64:
      return "F64";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
    case DType::kF8E4M3:
      return "F8_E4M3";
  }
  throw Error("[safetensors] unknown dtype");
}

}  // namespace

struct SafetensorsReader::Impl {
  struct Place {
    std::shared_ptr<Mapping> file;
    uint64_t begin;
    size_t entry;
  };
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, Place> places;

  void AddFile(const std::string& path);
  void AddEntry(const std::string& path, const std::shared_ptr<Mapping>& file, uint64_t data_begin,
                const std::string& name, const ordered_json& info);
  void AddIndex(const std::filesystem::path& folder);
};

void SafetensorsReader::Impl::AddFile(const std::string& path) {
  auto file = std::make_shared<Mapping>(path);
  uint64_t header = 0;
  Check<CheckpointError>(file->size() >= sizeof header, "{}: {} bytes is no safetensors file", path,
                         file->size());
  std::memcpy(&header, file->data(), sizeof header);
  Check<CheckpointError>(header <= kMaxHeader && header <= file->size() - sizeof header,
                         "{}: the header is said to have {} bytes, the file has {}", path, header,
                         file->size());
  const char* begin = file->data() + sizeof header;
  const ordered_json json = ordered_json::parse(begin, begin + header, nullptr, false);
  Check<CheckpointError>(json.is_object(), "{}: the header is not a JSON object", path);
  for (const auto& [name, info] : json.items()) {
    if (name != "__metadata__") AddEntry(path, file, sizeof header + header, name, info);
  }
}

void SafetensorsReader::Impl::AddEntry(const std::string& path,
                                       const std::shared_ptr<Mapping>& file, uint64_t data_begin,
                                       const std::string& name, const ordered_json& info) {
  auto refuse = [&](bool ok, const char* what) {
    Check<CheckpointError>(ok, "{}: tensor '{}': {}", path, name, what);
  };
  refuse(info.is_object() && info.contains("dtype") && info["dtype"].is_string() &&
             info.contains("shape") && info["shape"].is_array() && info.contains("data_offsets") &&
             info["data_offsets"].is_array() && info["data_offsets"].size() == 2,
         "needs dtype, shape and data_offsets");
  const auto dtype = DTypeOfName(info["dtype"].get<std::string>());
  Check<CheckpointError>(dtype.has_value(), "{}: tensor '{}': dtype {} is not supported", path,
                         name, info["dtype"].dump());
  SafetensorsEntry entry{name, *dtype, {}, path};
  const uint64_t data_size = file->size() - data_begin;
  uint64_t bytes = static_cast<uint64_t>(runtime::DTypeSize(*dtype));
  refuse(static_cast<int64_t>(info["shape"].size()) <= kMaxDims, "has too many dims");
  for (const auto& dim : info["shape"]) {
    refuse(dim.is_number_unsigned(), "a dim is not a whole number");
    const uint64_t n = dim.get<uint64_t>();
    refuse(n == 0 || bytes <= data_size / n, "is larger than the file");
    bytes *= n;
    entry.shape.push_back(static_cast<int64_t>(n));
  }
  const auto& offsets = info["data_offsets"];
  refuse(offsets[0].is_number_unsigned() && offsets[1].is_number_unsigned(),
         "an offset is not a whole number");
  const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  refuse(begin <= end && end <= data_size, "lies outside the file");
  refuse(end - begin == bytes, "shape and data_offsets disagree");
  refuse(places.count(name) == 0, "occurs twice");
  places[name] = {file, data_begin + begin, entries.size()};
  entries.push_back(std::move(entry));
}

void SafetensorsReader::Impl::AddIndex(const std::filesystem::path& folder) {
  const std::string path = folder / "model.safetensors.index.json";
  std::ifstream in(path, std::ios::binary);
  const ordered_json json = ordered_json::parse(in, nullptr, false);
  Check<CheckpointError>(
      json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(),
      "{}: not a JSON object with weight_map", path);
  std::set<std::string> files;
  for (const auto& [name, file] : json["weight_map"].items()) {
    Check<CheckpointError>(
        file.is_string() && file.get<std::string>().find('/') == std::string::npos,
        "{}: tensor '{}': {} is not the name of a file in this folder", path, name, file.dump());
    files.insert(file.get<std::string>());
  }
  for (const std::string& file : files) AddFile(folder / file);
  for (const auto& [name, file] : json["weight_map"].items()) {
    Check<CheckpointError>(places.count(name) != 0, "{}: tensor '{}' is missing from {}", path,
                           name, file.get<std::string>());
  }
}

SafetensorsReader::SafetensorsReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  const std::filesystem::path place = path;
  if (!std::filesystem::is_directory(place)) {
    impl_->AddFile(path);
  } else if (std::filesystem::exists(place / "model.safetensors")) {
    impl_->AddFile(place / "model.safetensors");
  } else {
    Check<CheckpointError>(std::filesystem::exists(place / "model.safetensors.index.json"),
                           "{}: has neither model.safetensors nor model.safetensors.index.json",
                           path);
    impl_->AddIndex(place);
  }
}
SafetensorsReader::~SafetensorsReader() = default;

const std::vector<SafetensorsEntry>& SafetensorsReader::entries() const { return impl_->entries; }
bool SafetensorsReader::Has(const std::string& name) const { return impl_->places.count(name) > 0; }

Tensor SafetensorsReader::Get(const std::string& name) const {
  const auto it = impl_->places.find(name);
  Check<CheckpointError>(it != impl_->places.end(), "[safetensors] no tensor '{}'", name);
  const Impl::Place& place = it->second;
  const SafetensorsEntry& entry = impl_->entries[place.entry];
  char* data = place.file->data() + place.begin;
  // The format packs tensors without padding; one that is not aligned for its type is copied.
  const uint64_t align = static_cast<uint64_t>(runtime::DTypeSize(entry.dtype));
  if (reinterpret_cast<uintptr_t>(data) % align == 0) {
    return Tensor(data, entry.shape, entry.dtype, Device::Cpu(), place.file);
  }
  const size_t bytes = static_cast<size_t>(runtime::NumElements(entry.shape)) * align;
  auto copy = std::make_shared<std::vector<double>>(bytes / sizeof(double) + 1);
  std::memcpy(copy->data(), data, bytes);
  return Tensor(copy->data(), entry.shape, entry.dtype, Device::Cpu(), copy);
}

void SafetensorsReader::Release(const std::string& name) const {
  const auto it = impl_->places.find(name);
  Check<CheckpointError>(it != impl_->places.end(), "[safetensors] no tensor '{}'", name);
  const Impl::Place& place = it->second;
  const SafetensorsEntry& entry = impl_->entries[place.entry];
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = place.begin / page * page;
  const uint64_t end = place.begin + static_cast<uint64_t>(runtime::NumElements(entry.shape) *
                                                           runtime::DTypeSize(entry.dtype));
  ::madvise(place.file->data() + begin, end - begin, MADV_DONTNEED);  // advice: it may be ignored
}

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
