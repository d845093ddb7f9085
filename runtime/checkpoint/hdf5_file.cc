#include "runtime/checkpoint/hdf5_file.h"

#include <hdf5.h>

#include <limits>
#include <mutex>

#include "runtime/checkpoint/hdf5_driver.h"
#include "runtime/error.h"

namespace hone::runtime {
namespace {

// Held around every use of the library, the closing of handles included.
class LibraryLock {
 public:
  LibraryLock() : lock_(Mutex()) { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

 private:
  static std::mutex& Mutex() {
    static std::mutex mutex;
    return mutex;
  }
  std::lock_guard<std::mutex> lock_;
};

// An HDF5 identifier and how to close it.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() { Close(); }
  herr_t Close() { return id_ >= 0 ? close_(std::exchange(id_, -1)) : 0; }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// The innermost reason on HDF5's error stack.
std::string LibraryReason() {
  std::string reason = "no reason given";
  auto take = [](unsigned n, const H5E_error2_t* entry, void* out) -> herr_t {
    if (n == 0 && entry->desc) *static_cast<std::string*>(out) = entry->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take, &reason);
  return reason;
}

hid_t StoredType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return H5T_IEEE_F32LE;
    case DType::kF64:
      return H5T_IEEE_F64LE;
    case DType::kBF16:
      return H5T_STD_U16LE;
    case DType::kI32:
      return H5T_STD_I32LE;
    case DType::kI64:
      return H5T_STD_I64LE;
    case DType::kU8:
    case DType::kF8E4M3:
      return H5T_STD_U8LE;
  }
  throw Error("[hdf5] unknown dtype");
}

// What unwritten parts of a view read as.
struct FillValue {
  alignas(8) unsigned char bytes[8] = {};
  explicit FillValue(DType dtype) {
    auto put = [this](auto value) { std::memcpy(bytes, &value, sizeof value); };
    if (dtype == DType::kF32) put(std::numeric_limits<float>::quiet_NaN());
    if (dtype == DType::kF64) put(std::numeric_limits<double>::quiet_NaN());
    if (dtype == DType::kBF16) put(uint16_t{0x7fc0});
    if (dtype == DType::kF8E4M3) put(uint8_t{0x7f});
    if (dtype == DType::kI32) put(std::numeric_limits<int32_t>::min());
    if (dtype == DType::kI64) put(std::numeric_limits<int64_t>::min());
  }
};

std::vector<hsize_t> Dims(const Shape& shape) { return {shape.begin(), shape.end()}; }

}  // namespace

struct Hdf5File::Impl {
  std::string path;
  Hdf5DriverState state;
  Handle file{-1, H5Fclose};

  // Throws when an HDF5 call returned a negative number, or something failed below it.
  template <class Result>
  Result Must(Result result, const std::string& what) {
    if (state.error) std::rethrow_exception(state.error);
    Check<CheckpointError>(result >= 0, "[checkpoint] {}: HDF5 could not {}: {}", path, what,
                           result >= 0 ? "" : LibraryReason());
    return result;
  }
  Handle Space(const Shape& shape) {
    if (shape.empty()) return {Must(H5Screate(H5S_SCALAR), "make a dataspace"), H5Sclose};
    auto dims = Dims(shape);
    hid_t id = H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
    return {Must(id, "make a dataspace of " + ShapeToString(shape)), H5Sclose};
  }
  Handle Properties(hid_t of) { return {Must(H5Pcreate(of), "make properties"), H5Pclose}; }
  Handle TextType(size_t size) {
    Handle type(Must(H5Tcopy(H5T_C_S1), "make a text type"), H5Tclose);
    Must(H5Tset_size(type, std::max<size_t>(1, size)), "size a text type");
    Must(H5Tset_strpad(type, H5T_STR_NULLPAD), "pad a text type");
    Must(H5Tset_cset(type, H5T_CSET_UTF8), "set a text type's encoding");
    return type;
  }
  Handle CreateDataset(const std::string& name, hid_t type, hid_t space, hid_t properties) {
    Handle links = Properties(H5P_LINK_CREATE);
    Must(H5Pset_create_intermediate_group(links, 1), "set link properties");
    hid_t id = H5Dcreate2(file, name.c_str(), type, space, links, properties, H5P_DEFAULT);
    return {Must(id, "create " + name), H5Dclose};
  }
  void SetTextAttribute(hid_t object, const char* name, const std::string& value) {
    Handle type = TextType(value.size());
    Handle space = Space({});
    Handle attribute(
        Must(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), "make an attribute"),
        H5Aclose);
    Must(H5Awrite(attribute, type, value.data()), "write an attribute");
  }
  void SetDTypeAttribute(hid_t object, DType dtype) {
    SetTextAttribute(object, "dtype", std::string(DTypeName(dtype)));
  }
  static std::unique_ptr<Impl> Make(FileSystem& fs, const std::string& path, bool create,
                                    int64_t user_block);
};

std::unique_ptr<Hdf5File::Impl> Hdf5File::Impl::Make(FileSystem& fs, const std::string& path,
                                                     bool create, int64_t user_block) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->state.fs = &fs;
  Handle access = impl->Properties(H5P_FILE_ACCESS);
  impl->Must(UseFileSystemDriver(access, &impl->state), "set the file driver");
  // Of this version, because its headers carry checksums and because virtual datasets need it.
  impl->Must(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), "set its version");
  impl->Must(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG), "set how files close");
  Handle creation = impl->Properties(H5P_FILE_CREATE);
  impl->Must(H5Pset_userblock(creation, static_cast<hsize_t>(user_block)), "set a user block");
  hid_t id = create ? H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access)
                    : H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  impl->file = Handle(impl->Must(id, create ? "create the file" : "open the file"), H5Fclose);
  return impl;
}

Hdf5File::Hdf5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;

Hdf5File::~Hdf5File() {
  if (!impl_) return;
  LibraryLock lock;
  impl_->file.Close();
}

Hdf5File Hdf5File::Create(FileSystem& fs, const std::string& path, int64_t user_block) {
  LibraryLock lock;
  return Hdf5File(Impl::Make(fs, path, true, user_block));
}

Hdf5File Hdf5File::Open(FileSystem& fs, const std::string& path) {
  LibraryLock lock;
  return Hdf5File(Impl::Make(fs, path, false, 0));
}

void Hdf5File::Close() {
  LibraryLock lock;
  impl_->Must(impl_->file.Close(), "close the file");
}

int64_t Hdf5File::WriteDataset(const std::string& name, DType dtype, const Shape& shape,
                               const void* data, int compression) {
  LibraryLock lock;
  Handle space = impl_->Space(shape);
  Handle properties = impl_->Properties(H5P_DATASET_CREATE);
  bool compressed = compression > 0 && !shape.empty();
  if (compressed) {
    constexpr hsize_t kChunkElements = 1 << 20;
    auto chunk = Dims(shape);
    hsize_t inner = 1;
    for (size_t d = chunk.size(); d-- > 0;) {
      chunk[d] = std::max<hsize_t>(1, std::min<hsize_t>(chunk[d], kChunkElements / inner));
      inner *= chunk[d];
    }
    impl_->Must(H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data()), "chunk");
    impl_->Must(H5Pset_shuffle(properties), "set the shuffle filter");
    impl_->Must(H5Pset_deflate(properties, static_cast<unsigned>(compression)), "set deflate");
  } else {
    impl_->Must(H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY), "set allocation");
  }
  impl_->Must(H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER), "turn filling off");
  hid_t type = StoredType(dtype);
  Handle dataset = impl_->CreateDataset(name, type, space, properties);
  impl_->SetDTypeAttribute(dataset, dtype);
  impl_->Must(H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "write " + name);
  haddr_t position = compressed ? HADDR_UNDEF : H5Dget_offset(dataset);
  impl_->Must(dataset.Close(), "close " + name);
  return position == HADDR_UNDEF ? -1 : static_cast<int64_t>(position);
}

void Hdf5File::ReadDataset(const std::string& name, DType dtype, const Shape& shape, void* data) {
  LibraryLock lock;
  Handle dataset(impl_->Must(H5Dopen2(impl_->file, name.c_str(), H5P_DEFAULT), "open " + name),
                 H5Dclose);
  Handle space(impl_->Must(H5Dget_space(dataset), "ask for a dataspace"), H5Sclose);
  Handle stored(impl_->Must(H5Dget_type(dataset), "ask for a type"), H5Tclose);
  std::vector<hsize_t> dims(std::max(0, H5Sget_simple_extent_ndims(space)));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  hid_t type = StoredType(dtype);
  Check<CheckpointError>(dims == Dims(shape) && H5Tequal(stored, type) > 0,
                         "[checkpoint] {}: {} is not a dataset of shape {} and dtype {}",
                         impl_->path, name, ShapeToString(shape), DTypeName(dtype));
  impl_->Must(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), "read " + name);
}

void Hdf5File::WriteText(const std::string& name, const std::string& text) {
  LibraryLock lock;
  Handle type = impl_->TextType(text.size());
  Handle space = impl_->Space({});
  Handle dataset = impl_->CreateDataset(name, type, space, H5P_DEFAULT);
  impl_->Must(H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.c_str()),
              "write " + name);
}

std::string Hdf5File::ReadText(const std::string& name) {
  LibraryLock lock;
  Handle dataset(impl_->Must(H5Dopen2(impl_->file, name.c_str(), H5P_DEFAULT), "open " + name),
                 H5Dclose);
  Handle type(impl_->Must(H5Dget_type(dataset), "ask for a type"), H5Tclose);
  bool fixed_text = H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0;
  Check<CheckpointError>(fixed_text, "[checkpoint] {}: {} is not a text", impl_->path, name);
  std::string text(H5Tget_size(type), '\0');
  impl_->Must(H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()), "read " + name);
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

void Hdf5File::WriteView(const std::string& name, DType dtype, const Shape& shape,
                         const std::vector<Piece>& pieces) {
  LibraryLock lock;
  if (shape.empty()) {
    Handle links = impl_->Properties(H5P_LINK_CREATE);
    impl_->Must(H5Pset_create_intermediate_group(links, 1), "set link properties");
    impl_->Must(H5Lcreate_external(pieces.at(0).file.c_str(), pieces[0].dataset.c_str(),
                                   impl_->file, name.c_str(), links, H5P_DEFAULT),
                "link " + name);
    return;
  }
  Handle space = impl_->Space(shape);
  Handle properties = impl_->Properties(H5P_DATASET_CREATE);
  hid_t type = StoredType(dtype);
  FillValue fill(dtype);
  impl_->Must(H5Pset_fill_value(properties, type, fill.bytes), "set a fill value");
  for (const Piece& piece : pieces) {
    Handle target = impl_->Space(shape);
    Handle source = impl_->Space(piece.extent);
    auto offset = Dims(piece.offset), extent = Dims(piece.extent);
    impl_->Must(
        H5Sselect_hyperslab(target, H5S_SELECT_SET, offset.data(), nullptr, extent.data(), nullptr),
        "select a piece of " + name);
    impl_->Must(
        H5Pset_virtual(properties, target, piece.file.c_str(), piece.dataset.c_str(), source),
        "map a piece of " + name);
  }
  Handle dataset = impl_->CreateDataset(name, type, space, properties);
  impl_->SetDTypeAttribute(dataset, dtype);
}

}  // namespace hone::runtime
