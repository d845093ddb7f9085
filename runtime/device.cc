#include "runtime/device.h"

#include <fmt/core.h>

namespace hone::runtime {

std::string Device::ToString() const { return is_cpu() ? "cpu" : fmt::format("cuda:{}", index); }

}  // namespace hone::runtime
