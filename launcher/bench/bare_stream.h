// What gRPC itself takes to stream bytes between two threads of this machine over loopback.
#pragma once

#include <cstdint>

namespace hone::launcher {

double SecondsOfBareStream(int64_t bytes);

}  // namespace hone::launcher
