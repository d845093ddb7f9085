#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "model/stored_float.h"
#include "model/strict_json.h"

namespace hone::model {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100 << 20;  // as the format's own library refuses
constexpr int64_t kMaxDims = 8;
constexpr char kF8Name[] = "F8_E4M3";

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
  // Advice, for the pages of [begin, end): it may be ignored.
  void Advise(const char* begin, const char* end, int advice) const {
    static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<uintptr_t>(begin) / page * page;
    ::madvise(reinterpret_cast<void*>(first), reinterpret_cast<uintptr_t>(end) - first, advice);
  }

 private:
  void* data_ = nullptr;
  uint64_t size_ = 0;
};

// As the format spells them. F16 has no DType: it is read as f32.
struct StoredType {
  const char* name;
  DType dtype;
  int64_t bytes;
};
constexpr StoredType kStoredTypes[] = {{"F32", DType::kF32, 4}, {"BF16", DType::kBF16, 2},
                                       {"F16", DType::kF32, 2}, {"F64", DType::kF64, 8},
                                       {"I32", DType::kI32, 4}, {"I64", DType::kI64, 8},
                                       {"U8", DType::kU8, 1},   {kF8Name, DType::kF8E4M3, 1}};

const StoredType* FindStoredType(const std::string& name) {
  for (const StoredType& type : kStoredTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

// What a tensor is in its file, before anything is decoded.
struct Place {
  std::shared_ptr<Mapping> file;
  int64_t element_bytes = 0;
  SafetensorsEntry entry;
  Tensor scale;  // of fp8 with factors

  int64_t rows() const { return entry.shape.empty() ? 1 : entry.shape[0]; }
  int64_t row_elements() const {
    return entry.shape.empty() ? 1
                               : runtime::NumElements(entry.shape) / std::max<int64_t>(1, rows());
  }
  char* row(int64_t r) const {
    return file->data() + entry.position +
           static_cast<uint64_t>(r * row_elements() * element_bytes);
  }
};

// Memory of its own for a tensor.
Tensor Allocate(Shape shape, DType dtype) {
  const int64_t bytes = runtime::NumElements(shape) * runtime::DTypeSize(dtype);
  auto memory = std::make_shared_for_overwrite<double[]>(static_cast<size_t>(bytes / 8 + 1));
  return Tensor(memory.get(), std::move(shape), dtype, Device::Cpu(), memory);
}

Shape RowsShape(const Place& place, int64_t begin, int64_t end) {
  Shape shape = place.entry.shape;
  if (!shape.empty()) shape[0] = end - begin;
  return shape;
}

// Rows as they are stored: in the mapped file, or, where they lie unaligned for their type (the
// format has no padding), in a copy.
Tensor Viewed(const Place& place, int64_t begin, int64_t end) {
  const DType dtype = FindStoredType(place.entry.stored)->dtype;
  Shape shape = RowsShape(place, begin, end);
  char* data = place.row(begin);
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(place.element_bytes) == 0) {
    return Tensor(data, std::move(shape), dtype, Device::Cpu(), place.file);
  }
  Tensor copy = Allocate(std::move(shape), dtype);
  std::memcpy(copy.raw(), data, static_cast<size_t>(copy.bytes()));
  return copy;
}

}  // namespace

struct SafetensorsReader::Impl {
  std::map<std::string, Place> places;
  std::vector<SafetensorsEntry> entries;

  void AddFile(const std::string& path);
  void AddTensor(const std::string& path, const std::shared_ptr<Mapping>& file, uint64_t data_begin,
                 const std::string& name, const json& info);
  void CheckLayout(const std::string& path, const std::shared_ptr<Mapping>& file,
                   uint64_t data_begin) const;
  void AddIndex(const std::filesystem::path& folder);
  void AttachScales();
  const Place& At(const std::string& name) const;
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
  const json parsed = ParseStrictly(begin, begin + header, path);
  Check<CheckpointError>(parsed.is_object(), "{}: the header is not a JSON object", path);
  for (const auto& [name, info] : parsed.items()) {
    if (name != "__metadata__") AddTensor(path, file, sizeof header + header, name, info);
  }
  CheckLayout(path, file, sizeof header + header);
}

void SafetensorsReader::Impl::AddTensor(const std::string& path,
                                        const std::shared_ptr<Mapping>& file, uint64_t data_begin,
                                        const std::string& name, const json& info) {
  auto refuse = [&](bool ok, const char* what) {
    Check<CheckpointError>(ok, "{}: tensor '{}': {}", path, name, what);
  };
  refuse(info.is_object() && info.contains("dtype") && info["dtype"].is_string() &&
             info.contains("shape") && info["shape"].is_array() && info.contains("data_offsets") &&
             info["data_offsets"].is_array() && info["data_offsets"].size() == 2,
         "needs dtype, shape and data_offsets");
  const std::string stored = info["dtype"].get<std::string>();
  const StoredType* type = FindStoredType(stored);
  Check<CheckpointError>(type != nullptr, "{}: tensor '{}': dtype \"{}\" is not supported", path,
                         name, stored);
  SafetensorsEntry entry{name, type->dtype, {}, path, stored, 0};
  const uint64_t data_size = file->size() - data_begin;
  uint64_t bytes = static_cast<uint64_t>(type->bytes);
  refuse(static_cast<int64_t>(info["shape"].size()) <= kMaxDims, "has too many dims");
  for (const auto& dim : info["shape"]) {
    refuse(dim.is_number_unsigned(), "a dim is not a whole number");
    const uint64_t n = dim.get<uint64_t>();
    refuse(n <= static_cast<uint64_t>(INT64_MAX), "is larger than the file");
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
  refuse(places.count(name) == 0, "occurs in another file, too");
  entry.position = data_begin + begin;
  places[name] = {file, type->bytes, std::move(entry), {}};
}

// The data are the tensors end to end: none over another, and nothing between or after them.
void SafetensorsReader::Impl::CheckLayout(const std::string& path,
                                          const std::shared_ptr<Mapping>& file,
                                          uint64_t data_begin) const {
  std::vector<std::pair<uint64_t, const Place*>> order;
  for (const auto& [name, place] : places) {
    if (place.file == file) order.emplace_back(place.entry.position, &place);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first, a.second->rows() * a.second->row_elements()) <
           std::pair(b.first, b.second->rows() * b.second->row_elements());
  });
  uint64_t at = data_begin;
  for (const auto& [begin, place] : order) {
    Check<CheckpointError>(begin >= at, "{}: tensor '{}' overlaps another", path,
                           place->entry.name);
    Check<CheckpointError>(begin == at, "{}: before tensor '{}' are {} bytes of no tensor", path,
                           place->entry.name, begin - at);
    at += static_cast<uint64_t>(place->rows() * place->row_elements() * place->element_bytes);
  }
  Check<CheckpointError>(at == file->size(), "{}: the last {} bytes are of no tensor", path,
                         file->size() - at);
}

void SafetensorsReader::Impl::AddIndex(const std::filesystem::path& folder) {
  const std::string path = folder / "model.safetensors.index.json";
  const Mapping text(path);
  const json parsed = ParseStrictly(text.data(), text.data() + text.size(), path);
  Check<CheckpointError>(
      parsed.is_object() && parsed.contains("weight_map") && parsed["weight_map"].is_object(),
      "{}: not a JSON object with weight_map", path);
  const json& map = parsed["weight_map"];
  std::set<std::string> files;
  for (const auto& [name, file] : map.items()) {
    Check<CheckpointError>(
        file.is_string() && file.get<std::string>().find('/') == std::string::npos,
        "{}: tensor '{}': {} is not the name of a file in this folder", path, name, file.dump());
    files.insert(file.get<std::string>());
  }
  for (const std::string& file : files) AddFile(folder / file);
  for (const auto& [name, file] : map.items()) {
    const auto at = places.find(name);
    Check<CheckpointError>(
        at != places.end() && at->second.entry.file == folder / file.get<std::string>(),
        "{}: tensor '{}' is missing from {}", path, name, file.get<std::string>());
  }
}

// Joins NAME_scale_inv to the fp8 matrix NAME.
void SafetensorsReader::Impl::AttachScales() {
  const std::string suffix = "_scale_inv";
  for (auto it = places.begin(); it != places.end();) {
    const std::string& name = it->first;
    const bool named_so = name.ends_with(suffix);
    const auto of =
        named_so ? places.find(name.substr(0, name.size() - suffix.size())) : places.end();
    if (of == places.end() || of->second.entry.stored != kF8Name) {
      ++it;
      continue;
    }
    const SafetensorsEntry &scale = it->second.entry, &matrix = of->second.entry;
    Check<CheckpointError>(scale.stored == "F32" && matrix.shape.size() == 2 &&
                               scale.shape == ScaleShape(matrix.shape),
                           "{}: tensor '{}' is {} {}; {} {} has f32 factors for blocks of {} × {}",
                           scale.file, name, scale.stored, runtime::ShapeToString(scale.shape),
                           matrix.name, runtime::ShapeToString(matrix.shape), kScaleBlock,
                           kScaleBlock);
    of->second.scale = Viewed(it->second, 0, it->second.rows());
    of->second.entry.dtype = DType::kBF16;
    it = places.erase(it);
  }
}

const Place& SafetensorsReader::Impl::At(const std::string& name) const {
  const auto it = places.find(name);
  Check<CheckpointError>(it != places.end(), "[safetensors] no tensor '{}'", name);
  return it->second;
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
  impl_->AttachScales();
  for (const auto& [name, at] : impl_->places) impl_->entries.push_back(at.entry);
}
SafetensorsReader::~SafetensorsReader() = default;

const std::vector<SafetensorsEntry>& SafetensorsReader::entries() const { return impl_->entries; }
bool SafetensorsReader::Has(const std::string& name) const { return impl_->places.count(name) > 0; }
const SafetensorsEntry& SafetensorsReader::Entry(const std::string& name) const {
  return impl_->At(name).entry;
}

Tensor SafetensorsReader::Get(const std::string& name) const {
  const Place& place = impl_->At(name);
  return Rows(name, 0, place.rows(), place.entry.dtype);
}

Tensor SafetensorsReader::Rows(const std::string& name, int64_t begin, int64_t end,
                               DType dtype) const {
  const Place& place = impl_->At(name);
  CheckShape(0 <= begin && begin <= end && end <= place.rows(),
             "[safetensors] rows {} to {} of '{}', which has {}", begin, end, name, place.rows());
  const bool half = place.entry.stored == "F16", scaled = place.scale.defined();
  if (!half && !scaled) {
    Tensor stored = Viewed(place, begin, end);
    if (stored.dtype() == dtype) return stored;
    Tensor converted = Allocate(stored.shape(), dtype);
    CopyTo(stored, converted);
    return converted;
  }
  Tensor decoded = Allocate(RowsShape(place, begin, end), dtype);
  if (scaled) {
    DecodeScaledF8(reinterpret_cast<const uint8_t*>(place.row(begin)), begin, place.scale, decoded);
  } else if (reinterpret_cast<uintptr_t>(place.row(begin)) % alignof(uint16_t) == 0) {
    DecodeHalf(reinterpret_cast<const uint16_t*>(place.row(begin)), decoded);
  } else {
    std::vector<uint16_t> aligned(static_cast<size_t>(decoded.size()));
    std::memcpy(aligned.data(), place.row(begin), aligned.size() * sizeof(uint16_t));
    DecodeHalf(aligned.data(), decoded);
  }
  return decoded;
}

void SafetensorsReader::Read(const std::string& name, const Tensor& out) const {
  constexpr int64_t kElements = 4 << 20;
  const Place& place = impl_->At(name);
  CheckShape(out.shape() == place.entry.shape, "[safetensors] '{}' has shape {}, read into {}",
             name, runtime::ShapeToString(place.entry.shape), runtime::ShapeToString(out.shape()));
  if (out.ndim() == 0 || out.size() == 0) {
    if (out.size() > 0) CopyTo(Rows(name, 0, 1, out.dtype()), out);
    return;
  }
  const int64_t step = std::max<int64_t>(1, kElements / place.row_elements());
  for (int64_t begin = 0; begin < place.rows(); begin += step) {
    const int64_t end = std::min(place.rows(), begin + step);
    CopyTo(Rows(name, begin, end, out.dtype()), out.Slice(begin, end));
    Release(name, begin, end);
  }
}

void SafetensorsReader::Prefetch(const std::string& name, int64_t begin, int64_t end) const {
  const Place& place = impl_->At(name);
  place.file->Advise(place.row(begin), place.row(end), MADV_WILLNEED);
}

void SafetensorsReader::Release(const std::string& name, int64_t begin, int64_t end) const {
  const Place& place = impl_->At(name);
  place.file->Advise(place.row(begin), place.row(end), MADV_DONTNEED);
}

}  // namespace hone::model
