// HDF5's virtual file driver over FileSystem, so that its files fail, are counted and are synced
// like all others. For hdf5_file.cc alone.
#pragma once

#include <cstdint>
#include <exception>

#include "runtime/file_system.h"

namespace hone::runtime {

// What went wrong below HDF5, the first time. An exception cannot pass through HDF5's C frames, and
// a file whose writes fail can no longer be closed (HDF5 keeps its dirty cache and tries again at
// exit). So the driver keeps the error here, tells HDF5 that all is well, and drops what follows;
// whoever called HDF5 looks here.
struct Hdf5DriverState {
  FileSystem* fs = nullptr;
  std::exception_ptr error;
};

// Makes the file access list `access` (an hid_t) open its files through `state`, which outlives
// them. Nothing is synced: that is left to whoever knows when. Returns a negative number on
// failure.
int UseFileSystemDriver(int64_t access, Hdf5DriverState* state);

}  // namespace hone::runtime
