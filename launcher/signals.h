// SIGTERM, SIGINT and SIGUSR1 (which mpirun hands on to its ranks) as a flag: the first asks to
// stop, the second ends the process at once.
#pragma once

#include <atomic>

namespace hone::launcher {

// Installs the handlers; the flag lives as long as the program.
const std::atomic<bool>& StopFlag();

}  // namespace hone::launcher
