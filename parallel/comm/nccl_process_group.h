// Ranks with a GPU each, over NCCL. Made by MakeDeviceGroup; without CUDA it throws.
#pragma once

#include <string>

#include "parallel/comm/process_group.h"
#include "runtime/context.h"

namespace hone::parallel {

// Collective over `control`, whose ranks it has. `control` carries what NCCL needs beforehand
// (unique ids), host tensors, AllGatherBytes and Split.
//
// Tensors of ctx's device move on streams of the group's own, behind what ctx's stream has been
// given when the operation starts. Work::Wait does not block the host: it makes ctx's stream wait,
// so what is launched there afterwards sees the result.
//
// Order of additions: NCCL's, which is not rank order. The same layout, topology and NCCL version
// give the same bits each time; other layouts, and the thread, MPI and TCP groups, may differ in
// the last bits. bf16 sums are made in f32 and rounded once, as everywhere.
//
// Messages: a receiver tells the sender over `control` what it is ready for, and the sender sends
// in that order, so that tags match as in the other groups. Receives from one peer should be waited
// for in the order in which they were started: one whose message is not on its way holds up those
// behind.
//
// Errors: a thread watches operations under way. When NCCL reports an error, or the oldest
// operation takes longer than the deadline, it aborts the communicator, so that nothing hangs, and
// every later Start and Wait throws the error, which names group, rank, operation and, for
// messages, the peer.
GroupPtr MakeNcclGroup(const Context& ctx, GroupPtr control, GroupOptions options = {});

// What two ranks on the same GPU have in common, and no others: its UUID.
std::string GpuIdentity(Device device);

}  // namespace hone::parallel
