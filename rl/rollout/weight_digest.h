// The digest of a weight version.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/slab.h"

namespace hone::rl {

// A 128-bit digest of named tensors that does not depend on how they are cut along dim 0, on their
// order, nor on the device they are on: kernels/digest, seeded by name and place. Hex. It is made
// where the tensors are.
std::string WeightDigest(const SlabIndex& slabs);
// Sum of the ranks' partial digests; ranks that hold replicas pass only what they own.
std::string CombineDigests(const std::vector<std::string>& partial);

// The same over tensors that come one after the other. Those in host memory are summed on a thread
// of its own: whoever copies them hands each over while it is still in the caches, and goes on with
// the next. Those on a device, of which there is one, are summed there by Finish.
class WeightDigester {
 public:
  WeightDigester();
  ~WeightDigester();
  WeightDigester(const WeightDigester&) = delete;
  WeightDigester& operator=(const WeightDigester&) = delete;

  void Add(SlabTensor tensor);  // its bytes must not change before Finish returns
  std::string Finish();         // of all that were added; throws what went wrong with one

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::rl
