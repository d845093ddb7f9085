#pragma once

#include <string>

namespace hone::parallel {

// "Open MPI v4.1.4": the library that this program runs with. Does not start MPI.
std::string MpiVersion();

}  // namespace hone::parallel
