// A slab whose bytes are read or computed when they are asked for: what is too large to be held at
// once goes from place to place through these.
#pragma once

#include <functional>

#include "runtime/slab.h"

namespace hone::runtime {

struct LazySlab {
  Slab slab;
  DType dtype;
  // The tensor of `slab.extent` (or as many elements), contiguous, in host memory. Whoever asks
  // drops it soon: its memory may be that of the next one, too.
  std::function<Tensor()> tensor;
};

}  // namespace hone::runtime
