// Device memory that NVIDIA's driver and libraries take for themselves: plans, communicators,
// graphs. It is not from the pool of tensors, which keeps what it has had.
#pragma once

namespace hone::runtime {

// Where the device has little left, gives it what the pool has and nobody uses. Before what would
// otherwise fail for want of memory, and be taken for impossible.
void MakeRoomForLibraries(int device);

}  // namespace hone::runtime
