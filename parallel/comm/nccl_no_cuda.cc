// Linked where CUDA is not built. No context can be on a GPU then, so nobody gets here.
#include "parallel/comm/nccl_process_group.h"
#include "runtime/error.h"

namespace hone::parallel {

GroupPtr MakeNcclGroup(const Context&, GroupPtr, GroupOptions) {
  throw DeviceError("[nccl] this build of hone has no CUDA");
}
std::string GpuIdentity(Device) { throw DeviceError("[nccl] this build of hone has no CUDA"); }
std::string NcclVersion() { return ""; }

}  // namespace hone::parallel
