// Where tensors live and in what order work on them happens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace hone::runtime {

struct Device {
  enum class Type : uint8_t { kCpu, kCuda };
  Type type = Type::kCpu;
  int index = 0;

  static Device Cpu() { return {}; }
  static Device Cuda(int index) { return {Type::kCuda, index}; }
  bool is_cpu() const { return type == Type::kCpu; }
  bool operator==(const Device&) const = default;
  std::string ToString() const;  // "cpu", "cuda:1"
};

// A queue of device work. On the CPU work is done when the call returns, so a CPU stream is empty.
// `handle` is the cudaStream_t on CUDA.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void Synchronize() {}
  virtual void* handle() { return nullptr; }
};

// A point in a stream's work. `Record` marks it, `Wait` makes another stream wait for it without
// blocking the host, `Synchronize` blocks the host.
class Event {
 public:
  virtual ~Event() = default;
  virtual void Record(Stream&) {}
  virtual void Wait(Stream&) {}
  virtual void Synchronize() {}
};

// Defined in device_cuda.cc, or in device_no_cuda.cc where they say that CUDA is not built in.
int CudaDeviceCount();  // that this process can use; 0 without CUDA or without a driver
std::string DescribeDevice(Device device);  // "cuda:0: NVIDIA H200, 139 GiB, sm_90, …"
std::unique_ptr<Stream> MakeStream(Device device);
std::unique_ptr<Event> MakeEvent(Device device);

// Copies between any two devices, ordered on `stream`; null: behind all work of the device, and
// done when the call returns. Ordinary host memory will do: a copy into host memory is done, and a
// host source may be changed, when the call returns.
void CopyBytes(void* dst, Device dst_device, const void* src, Device src_device, int64_t bytes,
               Stream* stream);
// The same for rows of `row_bytes` that lie `pitch` bytes apart.
void CopyRows(void* dst, Device dst_device, int64_t dst_pitch, const void* src, Device src_device,
              int64_t src_pitch, int64_t row_bytes, int64_t rows, Stream* stream);
// Returns at once; host memory must be from MakePinned and stay as it is until the stream is
// through.
void CopyBytesAsync(void* dst, Device dst_device, const void* src, Device src_device, int64_t bytes,
                    Stream& stream);
void FillZero(void* dst, Device device, int64_t bytes, Stream* stream);

// Host memory that devices copy from and to directly; ordinary memory where there is no device.
std::shared_ptr<void> MakePinned(int64_t bytes);

}  // namespace hone::runtime

namespace hone {
using runtime::Device;
using runtime::Event;
using runtime::Stream;
}  // namespace hone
