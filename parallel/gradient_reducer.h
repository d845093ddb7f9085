// Sums gradients over data-parallel replicas, in buckets, while the backward pass still runs.
//
// With ZeRO-1 a rank needs only its own rows of the sum: each bucket holds, for every rank of the
// group, that rank's rows of the bucket's parameters; one reduce-scatter a bucket. Sums are in rank
// order.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/parameter.h"
#include "parallel/shard_buckets.h"
#include "runtime/context.h"

namespace hone::parallel {

class GradientReducer {
 public:
  struct Options {
    int64_t bucket_bytes = 4 << 20;
    bool overlap = true;  // start a bucket when its last gradient is final; else all at the end
  };
  // Collective over the mesh. Parameters in the order in which backward finishes them (last layer
  // first). Frozen ones and buffers are left out. Those of other ranks must be the same, in the
  // same order.
  GradientReducer(Context& ctx, const Mesh& mesh, std::vector<Parameter*> parameters,
                  Options options);
  ~GradientReducer();

  // The gradient of `parameter` is final on this rank for this step, and is left alone until Finish
  // returns. Frozen parameters and buffers are passed over. Of two parameters in one storage both
  // are to be marked.
  void MarkReady(const Parameter* parameter);
  // Starts what is left, waits for all. Afterwards Shard(p) is this rank's rows of the summed
  // gradient, until the next MarkReady. The gradients of replicas on several pipeline ranks
  // (tied_replicas.h) have become their sum.
  void Finish();
  // [rows of this rank, …]: contiguous; empty when it has none.
  const Tensor& Shard(const Parameter* parameter) const;
  RowRange Rows(const Parameter* parameter) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::parallel
