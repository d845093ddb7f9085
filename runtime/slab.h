// A slab is the part of a global tensor that one rank holds: an offset and an extent for each dim.
// Checkpoint save and load, weight publication, reference refresh and Hugging Face import and
// export are all copies between two slab indexes.
#pragma once

#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace hone::runtime {

struct Slab {
  std::string name;  // global tensor name
  Shape global_shape;
  Shape offset;  // same length as global_shape
  Shape extent;

  static Slab Whole(std::string name, Shape shape);
  int64_t size() const { return NumElements(extent); }
  bool whole() const { return extent == global_shape; }
  std::string ToString() const;  // "name[0:4, 8:16] of [8, 16]"
};

// A slab and where its bytes are. The tensor has `slab.extent` as its shape (or the same number of
// elements, contiguous) and may be on any device.
struct SlabTensor {
  Slab slab;
  Tensor tensor;
};
using SlabIndex = std::vector<SlabTensor>;

// The intersection of two slabs of the same tensor; extent has a 0 where they do not meet.
Slab Intersect(const Slab& a, const Slab& b);
// What of `a` lies outside `b` (of the same tensor), as at most two slabs a dim that do not
// overlap.
std::vector<Slab> Subtract(const Slab& a, const Slab& b);
// Copies `region`, which lies inside both slabs; converts the dtype where they differ.
void CopyRegion(const Slab& region, const SlabTensor& src, const SlabTensor& dst);
// Copies src ∩ dst (converting dtype where they differ); returns how many elements were copied.
int64_t CopySlab(const SlabTensor& src, const SlabTensor& dst);
// Fills every slab of `dst` from those of `src`; CheckpointError names a part that no source
// covers, and a tensor whose global shapes differ. Tensors of `src` that `dst` lacks are not an
// error.
void CopySlabs(const SlabIndex& src, const SlabIndex& dst);

}  // namespace hone::runtime

namespace hone {
using runtime::Slab;
using runtime::SlabIndex;
using runtime::SlabTensor;
}  // namespace hone
