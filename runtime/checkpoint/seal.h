// A digest of a whole HDF5 file, kept in the file: HDF5 leaves the first kSealBytes of it ("user
// block") alone, and they hold a line of text, so that `head -1 index.h5` shows it.
#pragma once

#include <string>

#include "runtime/file_system.h"

namespace hone::runtime {

inline constexpr int64_t kSealBytes = 512;

// Digests what lies behind the seal, writes the seal, syncs.
void WriteSeal(FileSystem& fs, const std::string& path);
// CheckpointError when there is none, or the rest of the file is not what was sealed.
void CheckSeal(FileSystem& fs, const std::string& path);

}  // namespace hone::runtime
