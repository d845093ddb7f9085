// Linked where the CUDA backend is not built.
#include "runtime/error.h"
#include "runtime/shareable_memory.h"

namespace hone::runtime {

std::shared_ptr<void> MakeShareable(Device device, int64_t bytes) {
  throw DeviceError(fmt::format("[shareable memory] {} bytes of {}: this build of hone has no CUDA",
                                bytes, device.ToString()));
}
std::string ShareableHandle(Device device, const void*) {
  throw DeviceError(
      fmt::format("[shareable memory] {}: this build of hone has no CUDA", device.ToString()));
}
std::shared_ptr<void> OpenShareable(Device, const std::string&) { return nullptr; }

}  // namespace hone::runtime
