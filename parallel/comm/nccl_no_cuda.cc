// Linked where CUDA is not built. No context can be on a GPU then, unless the GPU is emulated:
// ranks share that one.
#include "parallel/comm/nccl_process_group.h"
#include "runtime/error.h"

namespace hone::parallel {

GroupPtr MakeNcclGroup(const Context&, GroupPtr, GroupOptions) {
  throw DeviceError("[nccl] this build of hone has no CUDA");
}
std::string GpuIdentity(Device device) { return device.ToString(); }

}  // namespace hone::parallel
