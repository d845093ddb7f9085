#include "runtime/checkpoint/seal.h"

#include <algorithm>

#include "runtime/digest.h"
#include "runtime/error.h"

namespace hone::runtime {
namespace {

std::string SealOf(File& file) {
  constexpr int64_t kChunk = 1 << 20;
  DigestStream digest;
  std::string buffer;
  for (int64_t at = kSealBytes, end = file.Size(); at < end; at += kChunk) {
    buffer.resize(std::min(kChunk, end - at));
    file.Read(at, buffer.data(), static_cast<int64_t>(buffer.size()));
    digest.Add(buffer.data(), static_cast<int64_t>(buffer.size()));
  }
  std::string seal = fmt::format("hone checkpoint index, HDF5 from byte {}, whose XXH3-128 is {}\n",
                                 kSealBytes, digest.Finish());
  seal.resize(kSealBytes, '\0');
  return seal;
}

}  // namespace

void WriteSeal(FileSystem& fs, const std::string& path) {
  auto file = fs.Open(path, OpenMode::kReadWrite);
  std::string seal = SealOf(*file);
  file->Write(0, seal.data(), kSealBytes);
  file->Sync();
  file->Close();
}

void CheckSeal(FileSystem& fs, const std::string& path) {
  auto file = fs.Open(path, OpenMode::kRead);
  std::string seal(kSealBytes, '\0');
  bool whole = file->Size() >= kSealBytes;
  if (whole) file->Read(0, seal.data(), kSealBytes);
  Check<CheckpointError>(
      whole && seal == SealOf(*file),
      "[checkpoint] {} is changed: it does not have the digest it was saved with", path);
}

}  // namespace hone::runtime
