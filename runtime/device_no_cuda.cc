// Linked where the CUDA backend is not built: CPU only.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "runtime/allocator.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/gpu_report.h"
#include "runtime/host_traffic.h"
#include "runtime/replay.h"

namespace hone::runtime {
namespace {

void NeedCpu(Device device, const char* what) {
  Check<DeviceError>(device.is_cpu(), "[{}] this build of hone has no CUDA; {} is not available",
                     what, device.ToString());
}

}  // namespace

bool CudaIsBuilt() { return false; }

std::string CudaObstacle() { return ""; }

int64_t HostTraffic() { return 0; }

int CudaDeviceCount() { return 0; }

std::string DescribeDevice(Device device) {
  NeedCpu(device, "device");
  return "cpu";
}

std::unique_ptr<Stream> MakeStream(Device device) {
  NeedCpu(device, "stream");
  return std::make_unique<Stream>();
}

std::unique_ptr<Event> MakeEvent(Device device) {
  NeedCpu(device, "event");
  return std::make_unique<Event>();
}

std::shared_ptr<Allocator> MakeCudaAllocator(Device device) {
  NeedCpu(device, "allocator");
  return nullptr;
}

std::unique_ptr<Replay> MakeCudaReplay(const std::shared_ptr<Allocator>& allocator, int64_t) {
  NeedCpu(allocator->device(), "replay");
  return nullptr;
}

Unrecorded::Unrecorded(Stream&) : recorder_(nullptr) {}
Unrecorded::~Unrecorded() = default;

std::shared_ptr<void> MakePinned(int64_t bytes) {
  return std::shared_ptr<void>(std::malloc(std::max<int64_t>(bytes, 1)), std::free);
}

void CopyBytes(void* dst, Device dst_device, const void* src, Device src_device, int64_t bytes,
               Stream*) {
  NeedCpu(dst_device, "copy");
  NeedCpu(src_device, "copy");
  if (bytes > 0) std::memcpy(dst, src, bytes);
}

void CopyBytesAsync(void* dst, Device dst_device, const void* src, Device src_device, int64_t bytes,
                    Stream& stream) {
  CopyBytes(dst, dst_device, src, src_device, bytes, &stream);
}

void CopyRows(void* dst, Device dst_device, int64_t dst_pitch, const void* src, Device src_device,
              int64_t src_pitch, int64_t row_bytes, int64_t rows, Stream* stream) {
  for (int64_t r = 0; r < rows; ++r) {
    CopyBytes(static_cast<char*>(dst) + r * dst_pitch, dst_device,
              static_cast<const char*>(src) + r * src_pitch, src_device, row_bytes, stream);
  }
}

void FillZero(void* dst, Device device, int64_t bytes, Stream*) {
  NeedCpu(device, "fill");
  if (bytes > 0) std::memset(dst, 0, bytes);
}

}  // namespace hone::runtime
