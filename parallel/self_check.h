// What TrainEngine::SelfCheck proves before the first step. Collective over the world group; every
// rank throws the same CommError.
#pragma once

#include <string>
#include <vector>

#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"
#include "parallel/parameter.h"
#include "runtime/context.h"

namespace hone::parallel {

// Ranks that hold the same slab of a tensor (data-parallel replicas, copies of an expert, both ends
// of a tied embedding) hold the same values, and all ranks have the same config digest. The error
// names the first rank that differs, and the tensor.
void CheckReplicas(Context& ctx, const Mesh& mesh, const std::vector<Parameter*>& parameters,
                   const std::string& config_digest);

// Gives every gradient values that tell its rank, lets `reducer` sum them, and compares with the
// sum over the ranks that hold the slab. Overwrites the gradients. `parameters`: those of the
// reducer.
void CheckGradientSums(Context& ctx, const Mesh& mesh, const std::vector<Parameter*>& parameters,
                       GradientReducer& reducer);

}  // namespace hone::parallel
