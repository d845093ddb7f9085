#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/hdf5_file.h"
#include "runtime/checkpoint/seal.h"
#include "runtime/checkpoint/slab_table.h"
#include "runtime/config.h"
#include "runtime/digest.h"
#include "runtime/error.h"

namespace hone::runtime {
namespace {

// What one piece of the checkpoint fills.
struct Use {
  const SlabTensor* dst;
  Slab region;
};

// A piece up to this size that is wanted whole is read whole, its digest taken from memory.
constexpr int64_t kHeldWhole = 64 << 20;

}  // namespace

struct CheckpointReader::Impl {
  FileSystem& fs;
  std::string dir;
  std::string metadata;
  SlabTable table;
  std::unordered_map<std::string, std::vector<size_t>> by_name, by_shard;  // rows of the table
  std::set<std::string> checked_shards;
  std::set<size_t> checked_pieces;

  void ReadIndex();
  void CheckShards() const;
  Hdf5File OpenShard(const ShardInfo& shard);
  void ReadPiece(Hdf5File& file, const CheckpointSlabInfo& info, void* data) const;
  const std::vector<size_t>& RowsOf(const Slab& wanted) const;
  std::vector<std::vector<Use>> Plan(const SlabIndex& dst) const;
  void CheckDigest(const CheckpointSlabInfo& info, const std::string& digest) const;
  void CheckOnce(File& file, size_t row);
  bool FillFromRuns(size_t row, const std::vector<Use>& uses, std::vector<char>* buffer);
  void FillFrom(Hdf5File& file, size_t row, const std::vector<Use>& uses,
                std::vector<char>* buffer);
};

void CheckpointReader::Impl::ReadIndex() {
  Check<CheckpointError>(fs.Exists(dir), "[checkpoint] {} does not exist", dir);
  std::string path = dir + "/" + kIndexFile;
  Check<CheckpointError>(fs.Exists(path), "[checkpoint] {} is missing: no checkpoint, or not whole",
                         path);
  CheckSeal(fs, path);
  Hdf5File index = Hdf5File::Open(fs, path);
  metadata = index.ReadText(kMetadataName);
  try {
    table = SlabTable::FromText(index.ReadText(kTableName));
  } catch (const Error& e) {
    throw CheckpointError(fmt::format("[checkpoint] {}: {}", path, e.what()));
  }
}

void CheckpointReader::Impl::CheckShards() const {
  for (const ShardInfo& shard : table.shards) {
    std::string path = dir + "/" + shard.file;
    Check<CheckpointError>(fs.Exists(path), "[checkpoint] {} is missing; in it was {}", path,
                           table.WhatIsIn(shard.file));
    int64_t size = fs.Open(path, OpenMode::kRead)->Size();
    Check<CheckpointError>(size == shard.bytes,
                           "[checkpoint] {} has {} bytes; {} were saved, with {}", path, size,
                           shard.bytes, table.WhatIsIn(shard.file));
  }
}

Hdf5File CheckpointReader::Impl::OpenShard(const ShardInfo& shard) {
  std::string path = dir + "/" + shard.file;
  if (!checked_shards.contains(shard.file)) {
    std::vector<CheckpointSlabInfo> inside;
    for (size_t row : by_shard[shard.file]) inside.push_back(table.slabs[row]);
    Check<CheckpointError>(GapDigest(fs, path, inside) == shard.gap_digest,
                           "[checkpoint] {} is changed: its headers are not those saved with {}",
                           path, table.WhatIsIn(shard.file));
    checked_shards.insert(shard.file);
  }
  return Hdf5File::Open(fs, path);
}

void CheckpointReader::Impl::ReadPiece(Hdf5File& file, const CheckpointSlabInfo& info,
                                       void* data) const {
  file.ReadDataset(info.dataset, info.dtype, info.slab.extent, data);
  CheckDigest(info, DigestOf(data, info.bytes));
}

void CheckpointReader::Impl::CheckDigest(const CheckpointSlabInfo& info,
                                         const std::string& digest) const {
  Check<CheckpointError>(
      digest == info.digest,
      "[checkpoint] {}/{} is changed: {} does not have the digest it was saved with", dir,
      info.shard, info.slab.ToString());
}

const std::vector<size_t>& CheckpointReader::Impl::RowsOf(const Slab& wanted) const {
  auto found = by_name.find(wanted.name);
  if (found == by_name.end()) {
    std::vector<std::string> names;
    for (const auto& entry : by_name) names.push_back(entry.first);
    std::sort(names.begin(), names.end());
    std::string near = NearestWord(wanted.name, names);
    throw CheckpointError(
        fmt::format("[checkpoint] {} has no tensor '{}'{}", dir, wanted.name,
                    near.empty() ? "" : fmt::format("; the nearest is '{}'", near)));
  }
  const Shape& saved = table.slabs[found->second[0]].slab.global_shape;
  Check<CheckpointError>(saved == wanted.global_shape,
                         "[checkpoint] {}: {} has shape {}; shape {} is wanted", dir, wanted.name,
                         ShapeToString(saved), ShapeToString(wanted.global_shape));
  return found->second;
}

// For each row of the table, what is to be filled from it: each element once, from the first row
// that has it.
std::vector<std::vector<Use>> CheckpointReader::Impl::Plan(const SlabIndex& dst) const {
  std::vector<std::vector<Use>> uses(table.slabs.size());
  for (const SlabTensor& d : dst) {
    std::vector<Slab> missing;
    if (d.slab.size() > 0) missing.push_back(d.slab);
    for (size_t row : RowsOf(d.slab)) {
      const Slab& piece = table.slabs[row].slab;
      std::vector<Slab> rest;
      for (const Slab& part : missing) {
        Slab both = Intersect(part, piece);
        if (both.size() > 0) uses[row].push_back({&d, both});
        for (Slab& left : Subtract(part, piece)) rest.push_back(std::move(left));
      }
      missing = std::move(rest);
    }
    Check<CheckpointError>(missing.empty(), "[checkpoint] {} has nothing for {}", dir,
                           missing.empty() ? "" : missing[0].ToString());
  }
  return uses;
}

// Where `region` lies in a piece when it is one run of its elements; nullopt when it is not.
std::optional<int64_t> RunIn(const Slab& piece, const Slab& region) {
  const size_t dims = region.extent.size();
  size_t inner = dims;  // from here on the region has all that the piece has
  while (inner > 0 && region.extent[inner - 1] == piece.extent[inner - 1]) --inner;
  int64_t at = 0;
  for (size_t d = 0; d < dims; ++d) {
    if (d + 1 < inner && region.extent[d] != 1) return std::nullopt;
    at = at * piece.extent[d] + region.offset[d] - piece.offset[d];
  }
  return at;
}

// The digest of a piece's bytes in the file, a little at a time; once for each piece.
void CheckpointReader::Impl::CheckOnce(File& file, size_t row) {
  constexpr int64_t kChunk = 8 << 20;
  if (checked_pieces.contains(row)) return;
  const CheckpointSlabInfo& info = table.slabs[row];
  std::vector<char> chunk(std::min(kChunk, info.bytes));
  DigestStream digest;
  for (int64_t at = 0; at < info.bytes; at += kChunk) {
    const int64_t n = std::min(kChunk, info.bytes - at);
    file.Read(info.position + at, chunk.data(), n);
    digest.Add(chunk.data(), n);
  }
  CheckDigest(info, digest.Finish());
  checked_pieces.insert(row);
}

// Of a piece that is large, or wanted in part, reads only the runs that are wanted, so that it is
// never held whole. False when what is wanted are not runs.
bool CheckpointReader::Impl::FillFromRuns(size_t row, const std::vector<Use>& uses,
                                          std::vector<char>* buffer) {
  const CheckpointSlabInfo& info = table.slabs[row];
  int64_t wanted = 0;
  for (const Use& use : uses) {
    if (!RunIn(info.slab, use.region)) return false;
    wanted += use.region.size();
  }
  const bool worth_it = info.bytes > kHeldWhole || wanted < info.slab.size();
  if (!worth_it || info.position < 0) return false;
  auto file = fs.Open(dir + "/" + info.shard, OpenMode::kRead);
  CheckOnce(*file, row);
  for (const Use& use : uses) {
    const int64_t width = DTypeSize(info.dtype), bytes = use.region.size() * width;
    const int64_t from = info.position + *RunIn(info.slab, use.region) * width;
    const Tensor& out = use.dst->tensor;
    const std::optional<int64_t> to = RunIn(use.dst->slab, use.region);
    if (to && out.contiguous() && out.device().is_cpu() && out.dtype() == info.dtype) {
      file->Read(from, static_cast<char*>(out.raw()) + *to * width, bytes);
      continue;
    }
    if (static_cast<int64_t>(buffer->size()) < bytes) buffer->resize(bytes);
    file->Read(from, buffer->data(), bytes);
    Tensor run(buffer->data(), use.region.extent, info.dtype, Device::Cpu());
    CopyRegion(use.region, {use.region, run}, *use.dst);
  }
  return true;
}

void CheckpointReader::Impl::FillFrom(Hdf5File& file, size_t row, const std::vector<Use>& uses,
                                      std::vector<char>* buffer) {
  const CheckpointSlabInfo& info = table.slabs[row];
  const Tensor& only = uses[0].dst->tensor;
  bool in_place = uses.size() == 1 && uses[0].dst->slab.extent == info.slab.extent &&
                  uses[0].region.extent == info.slab.extent && only.contiguous() &&
                  only.device().is_cpu() && only.dtype() == info.dtype;
  if (in_place) return ReadPiece(file, info, only.raw());
  if (FillFromRuns(row, uses, buffer)) return;
  if (static_cast<int64_t>(buffer->size()) < info.bytes) buffer->resize(info.bytes);
  ReadPiece(file, info, buffer->data());
  SlabTensor src{info.slab, Tensor(buffer->data(), info.slab.extent, info.dtype, Device::Cpu())};
  for (const Use& use : uses) CopyRegion(use.region, src, *use.dst);
}

CheckpointReader::CheckpointReader(FileSystem& fs, const std::string& dir)
    : impl_(new Impl{fs, dir, {}, {}, {}, {}, {}, {}}) {
  impl_->ReadIndex();
  impl_->table.CheckCoverage();
  impl_->CheckShards();
  for (size_t row = 0; row < impl_->table.slabs.size(); ++row) {
    const CheckpointSlabInfo& info = impl_->table.slabs[row];
    impl_->by_name[info.slab.name].push_back(row);
    impl_->by_shard[info.shard].push_back(row);
  }
}

CheckpointReader::~CheckpointReader() = default;

const std::string& CheckpointReader::metadata() const { return impl_->metadata; }

const std::vector<CheckpointSlabInfo>& CheckpointReader::slabs() const {
  return impl_->table.slabs;
}

std::vector<Slab> CheckpointReader::Tensors() const {
  std::map<std::string, Slab> tensors;
  for (const CheckpointSlabInfo& info : impl_->table.slabs) {
    tensors.try_emplace(info.slab.name, Slab::Whole(info.slab.name, info.slab.global_shape));
  }
  std::vector<Slab> whole;
  for (auto& [name, slab] : tensors) whole.push_back(std::move(slab));
  return whole;
}

bool CheckpointReader::Has(const std::string& name) const { return impl_->by_name.contains(name); }

void CheckpointReader::Load(const SlabIndex& dst) const {
  std::vector<std::vector<Use>> uses = impl_->Plan(dst);
  std::vector<char> buffer;
  for (const ShardInfo& shard : impl_->table.shards) {
    std::optional<Hdf5File> file;
    for (size_t row : impl_->by_shard[shard.file]) {
      if (uses[row].empty()) continue;
      if (!file) file.emplace(impl_->OpenShard(shard));
      impl_->FillFrom(*file, row, uses[row], &buffer);
    }
  }
}

void CheckpointReader::Verify() const {
  std::string errors;
  auto check = [&errors](auto fn) {
    try {
      fn();
    } catch (const Error& e) {
      errors += (errors.empty() ? "" : "\n") + std::string(e.what());
    }
  };
  std::vector<char> buffer;
  for (const ShardInfo& shard : impl_->table.shards) {
    check([&] {
      Hdf5File file = impl_->OpenShard(shard);
      for (size_t row : impl_->by_shard[shard.file]) {
        const CheckpointSlabInfo& info = impl_->table.slabs[row];
        if (static_cast<int64_t>(buffer.size()) < info.bytes) buffer.resize(info.bytes);
        check([&] { impl_->ReadPiece(file, info, buffer.data()); });
      }
    });
  }
  if (!errors.empty()) throw CheckpointError(errors);
}

}  // namespace hone::runtime
