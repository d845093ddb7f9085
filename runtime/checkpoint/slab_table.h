// The table that says where every byte of a checkpoint is, and its text form in index.h5.
#pragma once

#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"

namespace hone::runtime {

struct ShardInfo {
  std::string file;        // "shard-00003.h5"
  int64_t bytes = 0;       // its length
  std::string gap_digest;  // of all its bytes that are in no contiguous dataset: headers, links
};

struct SlabTable {
  std::vector<ShardInfo> shards;
  std::vector<CheckpointSlabInfo> slabs;

  std::string ToText() const;
  // Throws Error when the text is not such a table.
  static SlabTable FromText(const std::string& text);
  // Adds another's rows.
  void Append(SlabTable other);

  // CheckpointError naming a tensor whose rows differ in shape or dtype, reach outside it, or leave
  // a part of it out.
  void CheckCoverage() const;
  // "model/embed[0:4] of [8], and 11 more"
  std::string WhatIsIn(const std::string& shard) const;
};

// Where a tensor's view is in index.h5: at its own name when that has a group, else under /model.
std::string ViewName(const std::string& tensor);
std::string ShardName(int rank);
// The digest of a shard file outside its contiguous datasets, which `slabs` place in it.
std::string GapDigest(FileSystem& fs, const std::string& path,
                      const std::vector<CheckpointSlabInfo>& slabs);

inline constexpr const char* kIndexFile = "index.h5";
inline constexpr const char* kTableName = "/checkpoint/slabs";
inline constexpr const char* kMetadataName = "/checkpoint/metadata";

}  // namespace hone::runtime
