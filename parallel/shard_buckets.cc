#include "parallel/shard_buckets.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "runtime/error.h"

namespace hone::parallel {

RowRange ShardRows(int64_t rows, int group_rank, int group_size) {
  int64_t even = rows / group_size, longer = rows % group_size;
  int64_t begin = group_rank * even + std::min<int64_t>(group_rank, longer);
  return {begin, begin + even + (group_rank < longer ? 1 : 0)};
}

RowRange ShardBucket::Rows(const BucketEntry& entry, int rank) const {
  return ShardRows(entry.rows, rank, group->size());
}

Tensor ShardBucket::Section(const Tensor& buffer, int rank) const {
  return buffer.Slice(rank * section, (rank + 1) * section);
}

Tensor ShardBucket::View(const Tensor& of_section, const BucketEntry& entry, int rank) const {
  Shape shape = entry.parameter->spec.slab.extent;
  shape[0] = Rows(entry, rank).size();
  return of_section.Slice(entry.offset, entry.offset + shape[0] * entry.row_size).Reshape(shape);
}

namespace {

std::vector<ShardBucket> InOrderOfCompletion(std::vector<ShardBucket> buckets,
                                             const std::vector<size_t>& last_parameter) {
  std::vector<size_t> order(buckets.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return last_parameter[a] < last_parameter[b]; });
  std::vector<ShardBucket> sorted;
  for (size_t i : order) sorted.push_back(std::move(buckets[i]));
  return sorted;
}

}  // namespace

std::vector<ShardBucket> MakeShardBuckets(const Mesh& mesh,
                                          const std::vector<Parameter*>& parameters,
                                          const std::function<DType(const ParamSpec&)>& dtype,
                                          int64_t bucket_bytes) {
  std::vector<ShardBucket> buckets;
  std::vector<size_t> last_parameter;                    // of each bucket
  std::map<std::pair<ReduceGroup, DType>, size_t> open;  // the bucket that still takes entries
  for (size_t p = 0; p < parameters.size(); ++p) {
    const ParamSpec& spec = parameters[p]->spec;
    CheckShape(!spec.slab.extent.empty(), "[shard_buckets] {} has no dim to be sharded", spec.name);
    std::pair key{spec.reduce, dtype(spec)};
    if (!open.contains(key)) {
      open[key] = buckets.size();
      last_parameter.push_back(p);
      buckets.push_back(
          {spec.reduce == ReduceGroup::kData ? mesh.dp() : mesh.expert_data(), key.second, {}});
    }
    ShardBucket& bucket = buckets[open[key]];
    last_parameter[open[key]] = p;
    int64_t rows = spec.slab.extent[0], row_size = 1;
    for (size_t d = 1; d < spec.slab.extent.size(); ++d) row_size *= spec.slab.extent[d];
    bucket.entries.push_back({parameters[p], rows, row_size, bucket.section});
    int size = bucket.group->size();
    bucket.section += ShardRows(rows, 0, size).size() * row_size;
    if (bucket.section * size * runtime::DTypeSize(bucket.dtype) >= bucket_bytes) open.erase(key);
  }
  return InOrderOfCompletion(std::move(buckets), last_parameter);
}

std::vector<Parameter*> TrainableParameters(const std::vector<Parameter*>& parameters) {
  std::vector<Parameter*> trainable;
  std::set<const void*> seen;
  for (Parameter* parameter : parameters) {
    if (!parameter->spec.trainable || parameter->spec.buffer) continue;
    CheckShape(parameter->gradient.defined() &&
                   parameter->gradient.shape() == parameter->spec.slab.extent &&
                   parameter->gradient.contiguous(),
               "[parameters] {} has no contiguous gradient of shape {}", parameter->spec.name,
               runtime::ShapeToString(parameter->spec.slab.extent));
    if (seen.insert(parameter->gradient.raw()).second) trainable.push_back(parameter);
  }
  return trainable;
}

}  // namespace hone::parallel
