// How parameters lie in the buckets that GradientReducer and ShardedOptimizer exchange.
//
// A bucket belongs to one reduce group and one dtype. Its buffer has a *section* for each rank of
// the group, all of one size; in it every parameter of the bucket has room for the most rows a rank
// can hold, at the same offset in every section. So a reduce-scatter of the buffer leaves each rank
// the sum of its section, and an all-gather of sections fills the buffer.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/parameter.h"

namespace hone::parallel {

// Rows of dim 0 of a parameter that a rank of its reduce group updates: an even split, the first
// ranks one row more; possibly none.
struct RowRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
RowRange ShardRows(int64_t rows, int group_rank, int group_size);

struct BucketEntry {
  Parameter* parameter;
  int64_t rows, row_size;  // of this rank's part of the global tensor; elements a row
  int64_t offset;          // in a section, in elements
};

struct ShardBucket {
  GroupPtr group;
  DType dtype;
  std::vector<BucketEntry> entries;
  int64_t section = 0;  // elements

  RowRange Rows(const BucketEntry& entry, int rank) const;
  // `rank`'s rows of the entry inside that rank's `section`: [rows, …], a view.
  Tensor View(const Tensor& section, const BucketEntry& entry, int rank) const;
  Tensor Section(const Tensor& buffer, int rank) const;
};

// In the order given, closing a bucket when its buffer reaches `bucket_bytes`. One list a reduce
// group.
std::vector<ShardBucket> MakeShardBuckets(const Mesh& mesh,
                                          const std::vector<Parameter*>& parameters,
                                          const std::function<DType(const ParamSpec&)>& dtype,
                                          int64_t bucket_bytes);

// Those with a gradient, each storage once: of tied parameters in one storage, the first.
std::vector<Parameter*> TrainableParameters(const std::vector<Parameter*>& parameters);

}  // namespace hone::parallel
