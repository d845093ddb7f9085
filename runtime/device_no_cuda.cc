// Linked where the CUDA backend is not built: CPU only.
#include <cstring>

#include "runtime/device.h"
#include "runtime/error.h"

namespace hone::runtime {
namespace {

void NeedCpu(Device device, const char* what) {
  Check<DeviceError>(device.is_cpu(), "[{}] this build of hone has no CUDA; {} is not available", what,
                     device.ToString());
}

}  // namespace

int CudaDeviceCount() { return 0; }

std::unique_ptr<Stream> MakeStream(Device device) {
  NeedCpu(device, "stream");
  return std::make_unique<Stream>();
}

std::unique_ptr<Event> MakeEvent(Device device) {
  NeedCpu(device, "event");
  return std::make_unique<Event>();
}

void CopyBytes(void* dst, Device dst_device, const void* src, Device src_device, int64_t bytes,
               Stream*) {
  NeedCpu(dst_device, "copy");
  NeedCpu(src_device, "copy");
  if (bytes > 0) std::memcpy(dst, src, bytes);
}

void FillZero(void* dst, Device device, int64_t bytes, Stream*) {
  NeedCpu(device, "fill");
  if (bytes > 0) std::memset(dst, 0, bytes);
}

}  // namespace hone::runtime
