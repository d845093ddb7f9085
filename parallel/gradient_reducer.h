// Sums gradients over data-parallel replicas, in buckets, while the backward pass still runs.
//
// With ZeRO-1 a rank needs only its own rows of the sum: each bucket holds, for every rank of the group,
// that rank's rows of the bucket's parameters; one reduce-scatter a bucket. Sums are in rank order.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/parameter.h"
#include "runtime/context.h"

namespace hone::parallel {

// Rows of dim 0 of a parameter that a rank of its reduce group updates: an even split, the first ranks
// one row more; possibly none.
struct RowRange {
  int64_t begin = 0, end = 0;
};
RowRange ShardRows(int64_t rows, int group_rank, int group_size);

class GradientReducer {
 public:
  struct Options {
    int64_t bucket_bytes = 4 << 20;
    bool overlap = true;  // start a bucket when its last gradient is final; else all at the end
  };
  // Parameters in the order in which backward finishes them (last layer first). Frozen ones and buffers
  // are left out. Those of other ranks must be the same, in the same order.
  GradientReducer(Context& ctx, const Mesh& mesh, std::vector<Parameter*> parameters,
                  Options options);
  ~GradientReducer();

  // The gradient of `parameter` is final on this rank for this step.
  void MarkReady(const Parameter* parameter);
  // Starts what is left, waits for all. Afterwards Shard(p) is this rank's rows of the summed gradient.
  void Finish();
  // [rows of this rank, …]: contiguous; empty when it has none.
  const Tensor& Shard(const Parameter* parameter) const;
  RowRange Rows(const Parameter* parameter) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::parallel
