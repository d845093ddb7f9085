#include "runtime/checkpoint/hdf5_driver.h"

#include <hdf5.h>

#include <algorithm>
#include <cstring>
#include <memory>

namespace hone::runtime {
namespace {

struct DriverFile {
  H5FD_t base{};  // first: HDF5 sees the whole as this
  std::unique_ptr<File> file;
  Hdf5DriverState* state = nullptr;
  bool writable = false;
  haddr_t end_allocated = 0, end_written = 0;

  // Runs fn; an exception ends the use of the file.
  template <class Fn>
  void Guard(const Fn& fn) {
    if (!file) return;
    try {
      fn();
    } catch (...) {
      if (!state->error) state->error = std::current_exception();
      file.reset();
    }
  }
};

DriverFile* Of(H5FD_t* file) { return reinterpret_cast<DriverFile*>(file); }
const DriverFile* Of(const H5FD_t* file) { return reinterpret_cast<const DriverFile*>(file); }

H5FD_t* Open(const char* name, unsigned flags, hid_t access, haddr_t) {
  const void* info = H5Pget_driver_info(access);
  if (!info) return nullptr;
  auto opened = std::make_unique<DriverFile>();
  opened->state = *static_cast<Hdf5DriverState* const*>(info);
  opened->writable = (flags & H5F_ACC_RDWR) != 0;
  OpenMode mode = (flags & H5F_ACC_TRUNC) ? OpenMode::kCreate
                  : opened->writable      ? OpenMode::kReadWrite
                                          : OpenMode::kRead;
  try {
    opened->file = opened->state->fs->Open(name, mode);
    opened->end_written = static_cast<haddr_t>(opened->file->Size());
  } catch (...) {
    if (!opened->state->error) opened->state->error = std::current_exception();
    return nullptr;
  }
  return &opened.release()->base;
}

herr_t Close(H5FD_t* file) {
  std::unique_ptr<DriverFile> closing(Of(file));
  closing->Guard([&] { closing->file->Close(); });
  return 0;
}

herr_t Query(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t EndAllocated(const H5FD_t* file, H5FD_mem_t) { return Of(file)->end_allocated; }
herr_t SetEndAllocated(H5FD_t* file, H5FD_mem_t, haddr_t end) {
  Of(file)->end_allocated = end;
  return 0;
}
haddr_t EndOfFile(const H5FD_t* file, H5FD_mem_t) { return Of(file)->end_written; }

herr_t Read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t at, size_t size, void* buffer) {
  DriverFile* f = Of(file);
  // Past the end of the file there are zeros: allocated, not yet written.
  size_t there = at >= f->end_written ? 0 : std::min<haddr_t>(size, f->end_written - at);
  f->Guard([&] {
    f->file->Read(static_cast<int64_t>(at), buffer, static_cast<int64_t>(there));
    std::memset(static_cast<char*>(buffer) + there, 0, size - there);
  });
  return f->file ? 0 : -1;
}

herr_t Write(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t at, size_t size, const void* buffer) {
  DriverFile* f = Of(file);
  f->Guard([&] { f->file->Write(static_cast<int64_t>(at), buffer, static_cast<int64_t>(size)); });
  f->end_written = std::max<haddr_t>(f->end_written, at + size);
  return 0;
}

herr_t Truncate(H5FD_t* file, hid_t, hbool_t) {
  DriverFile* f = Of(file);
  if (f->writable && f->end_written != f->end_allocated) {
    f->Guard([&] { f->file->Truncate(static_cast<int64_t>(f->end_allocated)); });
    f->end_written = f->end_allocated;
  }
  return 0;
}

hid_t RegisterDriver() {
  H5FD_class_t driver{};
  driver.name = "hone";
  driver.maxaddr = static_cast<haddr_t>(INT64_MAX);
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.fapl_size = sizeof(Hdf5DriverState*);
  driver.open = Open;
  driver.close = Close;
  driver.query = Query;
  driver.get_eoa = EndAllocated;
  driver.set_eoa = SetEndAllocated;
  driver.get_eof = EndOfFile;
  driver.read = Read;
  driver.write = Write;
  driver.truncate = Truncate;
  const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(map), std::end(map), driver.fl_map);
  return H5FDregister(&driver);
}

}  // namespace

int UseFileSystemDriver(int64_t access, Hdf5DriverState* state) {
  static const hid_t driver = RegisterDriver();
  return H5Pset_driver(access, driver, &state);
}

}  // namespace hone::runtime
