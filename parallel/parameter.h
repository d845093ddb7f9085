// A parameter as the optimizer, the reducer, the checkpoint and the publisher see it.
#pragma once

#include <string>
#include <vector>

#include "runtime/slab.h"
#include "runtime/tensor.h"

namespace hone::parallel {

// Over which ranks a gradient is summed, and so over which the optimizer's state is sharded.
enum class ReduceGroup {
  kData,    // every rank of the dp axis: weights that all of them hold
  kExpert,  // ranks of the dp axis that hold the same experts (dp / ep of them)
};

struct ParamSpec {
  std::string name;    // global name, as in a Hugging Face state dict (experts stacked: […]experts.gate_proj.weight)
  Slab slab;           // this rank's part of the global tensor
  DType storage = DType::kF32;   // value and compute dtype
  DType gradient = DType::kF32;  // f64 for f64 values
  DType master = DType::kF32;    // the optimizer's copy
  bool trainable = true;
  bool decay = true;             // weight decay applies
  bool buffer = false;           // no gradient; changed by rule (the router's bias); saved and published
  std::string tied_to;           // the parameter this one shares its values with; "" if none. On one
                                 // rank tied parameters share storage; across pipeline ranks their
                                 // gradients are summed and each keeps a replica
  ReduceGroup reduce = ReduceGroup::kData;
};

struct Parameter {
  ParamSpec spec;
  Tensor value;     // shape spec.slab.extent
  Tensor gradient;  // same shape; undefined when frozen or a buffer. Layers add (+=) into it
};

}  // namespace hone::parallel

namespace hone {
using parallel::Parameter;
using parallel::ParamSpec;
}  // namespace hone
