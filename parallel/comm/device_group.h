// Groups that move tensors of a GPU.
#pragma once

#include "parallel/comm/process_group.h"
#include "runtime/context.h"

namespace hone::parallel {

// The best group for tensors on ctx's device whose ranks are those of `control`, which moves host
// memory (threads, MPI, TCP) and stays in use for control data and host tensors. Collective over
// `control`. On the CPU it is `control` itself; on GPUs NCCL, unless two ranks share one, which
// NCCL refuses: then staged host buffers. `why`, when given, is told which and the reason.
GroupPtr MakeDeviceGroup(const Context& ctx, GroupPtr control, GroupOptions options = {},
                         std::string* why = nullptr);

// Copies tensors of ctx's device to the host, lets `control` do its work there, and copies back at
// Wait: slow, with the bits of `control`, and any number of ranks may share a GPU.
GroupPtr MakeStagedGroup(const Context& ctx, GroupPtr control);

}  // namespace hone::parallel
