// Device memory that other processes of the machine can open, by CUDA IPC. The driver exports what
// cudaMalloc gave, not pieces of the stream-ordered pools that allocators take theirs from; so this
// is memory of its own, which no allocator counts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/device.h"

namespace hone::runtime {

// As long as the pointer lives; nobody may have it open when it goes. DeviceError when the device
// has no more, what pools keep for later included.
std::shared_ptr<void> MakeShareable(Device device, int64_t bytes);
// Names the memory to other processes.
std::string ShareableHandle(Device device, const void* memory);
// The memory of another process, as `device` sees it, until the pointer goes. Null where it cannot
// be opened: its process is this one or lives elsewhere, or the devices do not reach each other.
std::shared_ptr<void> OpenShareable(Device device, const std::string& handle);

}  // namespace hone::runtime
