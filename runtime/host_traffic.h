// What passes between host memory and devices, counted where it is copied.
#pragma once

#include <cstdint>

namespace hone::runtime {

// Bytes that this thread has copied from a device to host memory or the other way, by the functions
// of device.h. 0 without CUDA.
int64_t HostTraffic();

}  // namespace hone::runtime
