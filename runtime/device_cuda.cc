// CUDA devices: streams, events, copies.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "runtime/cuda_check.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/gpu_report.h"
#include "runtime/host_traffic.h"
#include "runtime/step_recorder.h"

namespace hone::runtime {
namespace {

void Use(Device device, std::string_view op) {
  CheckCuda(cudaSetDevice(device.index), op, "cudaSetDevice", device.index);
}

// Pinned host memory through which copies from ordinary host memory go, so that the caller's memory
// is free again at once and the copy runs behind it. Two halves take turns: one is filled while the
// copies out of the other run.
class Staging {
 public:
  ~Staging() {
    for (cudaEvent_t event : copied_) {
      if (event) cudaEventDestroy(event);
    }
    if (memory_) cudaFreeHost(memory_);
  }

  void Upload(char* dst, const char* src, int64_t bytes, cudaStream_t stream, int device) {
    std::lock_guard lock(mutex_);
    if (!memory_) Begin(device);
    while (bytes > 0) {
      if (used_ == kHalf) Turn(stream, device);
      int64_t n = std::min(bytes, kHalf - used_);
      char* piece = memory_ + half_ * kHalf + used_;
      std::memcpy(piece, src, n);
      CheckCuda(cudaMemcpyAsync(dst, piece, n, cudaMemcpyHostToDevice, stream), "copy",
                "cudaMemcpyAsync", device);
      used_ = std::min(kHalf, (used_ + n + kAlign - 1) / kAlign * kAlign);
      dst += n;
      src += n;
      bytes -= n;
    }
  }

 private:
  static constexpr int64_t kHalf = int64_t{4} << 20;
  static constexpr int64_t kAlign = 256;

  void Begin(int device) {
    void* memory = nullptr;
    CheckCuda(cudaHostAlloc(&memory, 2 * kHalf, cudaHostAllocDefault), "copy", "cudaHostAlloc",
              device);
    memory_ = static_cast<char*>(memory);
    for (cudaEvent_t& event : copied_) {
      CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "copy", "cudaEventCreate",
                device);
    }
  }

  void Turn(cudaStream_t stream, int device) {
    CheckCuda(cudaEventRecord(copied_[half_], stream), "copy", "cudaEventRecord", device);
    half_ ^= 1;
    used_ = 0;
    // An event that was never recorded counts as done.
    CheckCuda(cudaEventSynchronize(copied_[half_]), "copy", "cudaEventSynchronize", device);
  }

  std::mutex mutex_;
  char* memory_ = nullptr;
  int half_ = 0;
  int64_t used_ = 0;
  cudaEvent_t copied_[2] = {nullptr, nullptr};
};

class CudaStream : public Stream {
 public:
  explicit CudaStream(Device device) : device_(device) {
    Use(device, "stream");
    CheckCuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream",
              "cudaStreamCreate", device.index);
  }
  ~CudaStream() override {
    cudaSetDevice(device_.index);
    cudaStreamSynchronize(stream_);  // the staging memory is still read
    cudaStreamDestroy(stream_);
  }
  void Synchronize() override {
    if (auto* recorder = StepRecorder::Of(*this)) recorder->Cut();
    CheckCuda(cudaStreamSynchronize(stream_), "stream", "cudaStreamSynchronize", device_.index);
  }
  void* handle() override { return stream_; }
  Staging& staging() { return staging_; }

 private:
  Device device_;
  cudaStream_t stream_ = nullptr;
  Staging staging_;
};

// Threads that have no device yet ask for events too: without one CUDA would give them the first,
// and take half a gigabyte there for each process.
class CudaEvent : public Event {
 public:
  explicit CudaEvent(Device device) : device_(device) {
    Use(device, "event");
    Checked(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
  }
  ~CudaEvent() override {
    cudaSetDevice(device_.index);
    cudaEventDestroy(event_);
  }
  void Record(Stream& stream) override {
    Begin(StepRecorder::Of(stream));
    Checked(cudaEventRecord(event_, Handle(stream)), "record");
  }
  void Wait(Stream& stream) override {
    Begin(StepRecorder::Of(stream));
    Checked(cudaStreamWaitEvent(Handle(stream), event_, 0), "cudaStreamWaitEvent");
  }
  void Synchronize() override {
    Begin(StepRecorder::OfThread());
    Checked(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }

 private:
  void Begin(StepRecorder* recorder) const {
    if (recorder) recorder->Cut();
    Use(device_, "event");
  }
  static cudaStream_t Handle(Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }
  void Checked(cudaError_t status, const char* call) {
    CheckCuda(status, "event", call, device_.index);
  }

  Device device_;
  cudaEvent_t event_ = nullptr;
};

thread_local int64_t host_traffic = 0;

void CountTraffic(Device dst, Device src, int64_t bytes) {
  if (dst.is_cpu() != src.is_cpu()) host_traffic += bytes;
}

// The device that a copy runs on.
Device DeviceOf(Device a, Device b) { return a.is_cpu() ? b : a; }

cudaMemcpyKind Kind(Device dst, Device src) {
  if (dst.is_cpu()) return src.is_cpu() ? cudaMemcpyHostToHost : cudaMemcpyDeviceToHost;
  return src.is_cpu() ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice;
}

// For calls without a stream: what is under way on the device comes first.
void WaitForDevice(Device device) {
  if (auto* recorder = StepRecorder::OfThread()) recorder->Cut();
  CheckCuda(cudaDeviceSynchronize(), "copy", "cudaDeviceSynchronize", device.index);
}

// From ordinary host memory, which is free again when this returns.
void Upload(CudaStream& stream, StepRecorder* recorder, char* dst, const char* src, int64_t bytes,
            int device) {
  auto handle = static_cast<cudaStream_t>(stream.handle());
  const void* kept = recorder ? recorder->Upload(dst, src, bytes) : src;
  if (kept == src) {
    stream.staging().Upload(dst, src, bytes, handle, device);
  } else if (kept) {
    CheckCuda(cudaMemcpyAsync(dst, kept, bytes, cudaMemcpyHostToDevice, handle), "copy",
              "cudaMemcpyAsync", device);
  }
}

}  // namespace

bool CudaIsBuilt() { return true; }

int64_t HostTraffic() { return host_traffic; }

int CudaDeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver is no device, and no error of a later call
    return 0;
  }
  return count;
}

std::string CudaObstacle() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return "";
  cudaGetLastError();
  return fmt::format("{} ({})", cudaGetErrorName(status), cudaGetErrorString(status));
}

std::string DescribeDevice(Device device) {
  if (device.is_cpu()) return "cpu";
  cudaDeviceProp p = {};
  CheckCuda(cudaGetDeviceProperties(&p, device.index), "device", "cudaGetDeviceProperties",
            device.index);
  return fmt::format("{}: {}, {:.0f} GiB, sm_{}{}, {} multiprocessors", device.ToString(), p.name,
                     static_cast<double>(p.totalGlobalMem) / (1 << 30), p.major, p.minor,
                     p.multiProcessorCount);
}

std::unique_ptr<Stream> MakeStream(Device device) {
  if (device.is_cpu()) return std::make_unique<Stream>();
  int count = CudaDeviceCount();
  Check<DeviceError>(device.index >= 0 && device.index < count,
                     "[stream] {} does not exist: this process sees {} CUDA devices",
                     device.ToString(), count);
  return std::make_unique<CudaStream>(device);
}

std::unique_ptr<Event> MakeEvent(Device device) {
  if (device.is_cpu()) return std::make_unique<Event>();
  return std::make_unique<CudaEvent>(device);
}

std::shared_ptr<void> MakePinned(int64_t bytes) {
  if (CudaDeviceCount() == 0)
    return std::shared_ptr<void>(std::malloc(std::max<int64_t>(bytes, 1)), std::free);
  void* memory = nullptr;
  const cudaError_t status =
      cudaHostAlloc(&memory, std::max<int64_t>(bytes, 1), cudaHostAllocDefault);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw DeviceError(
        fmt::format("[pinned] the host has no {:.1f} MiB of memory that can be pinned",
                    static_cast<double>(bytes) / (1 << 20)));
  }
  CheckCuda(status, "pinned", "cudaHostAlloc", 0);
  return std::shared_ptr<void>(memory, [](void* p) { cudaFreeHost(p); });
}

void CopyBytes(void* dst, Device dst_device, const void* src, Device src_device, int64_t bytes,
               Stream* stream) {
  CopyRows(dst, dst_device, bytes, src, src_device, bytes, bytes, 1, stream);
}

void CopyBytesAsync(void* dst, Device dst_device, const void* src, Device src_device, int64_t bytes,
                    Stream& stream) {
  if (bytes <= 0) return;
  Device device = DeviceOf(dst_device, src_device);
  if (device.is_cpu()) {
    std::memcpy(dst, src, bytes);
    return;
  }
  Use(device, "copy");
  CountTraffic(dst_device, src_device, bytes);
  auto* recorder = StepRecorder::Of(stream);
  if (recorder && !recorder->Issue(Piece::kCopy, dst, src, bytes)) return;
  CheckCuda(cudaMemcpyAsync(dst, src, bytes, Kind(dst_device, src_device),
                            static_cast<cudaStream_t>(stream.handle())),
            "copy", "cudaMemcpyAsync", device.index);
}

void CopyRows(void* dst, Device dst_device, int64_t dst_pitch, const void* src, Device src_device,
              int64_t src_pitch, int64_t row_bytes, int64_t rows, Stream* stream) {
  if (row_bytes <= 0 || rows <= 0) return;
  Device device = DeviceOf(dst_device, src_device);
  auto* to = static_cast<char*>(dst);
  auto* from = static_cast<const char*>(src);
  if (device.is_cpu()) {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(to + r * dst_pitch, from + r * src_pitch, row_bytes);
    return;
  }
  Use(device, "copy");
  CountTraffic(dst_device, src_device, row_bytes * rows);
  auto* cuda = dynamic_cast<CudaStream*>(stream);
  if (!cuda) WaitForDevice(device);  // a CPU's stream orders nothing here
  auto handle = cuda ? static_cast<cudaStream_t>(cuda->handle()) : nullptr;
  bool whole = rows == 1 || (dst_pitch == row_bytes && src_pitch == row_bytes);
  auto* recorder = cuda ? StepRecorder::Of(*cuda) : nullptr;
  if (whole && cuda && src_device.is_cpu()) {
    Upload(*cuda, recorder, to, from, row_bytes * rows, device.index);
    return;
  }
  const bool waits = !cuda || dst_device.is_cpu() || src_device.is_cpu();
  if (recorder && waits) recorder->Cut();
  if (recorder && !waits &&
      !recorder->Issue(Piece::kCopy, to, dst_pitch, from, src_pitch, row_bytes, rows)) {
    return;
  }
  cudaError_t status =
      whole ? cudaMemcpyAsync(to, from, row_bytes * rows, Kind(dst_device, src_device), handle)
            : cudaMemcpy2DAsync(to, dst_pitch, from, src_pitch, row_bytes, rows,
                                Kind(dst_device, src_device), handle);
  CheckCuda(status, "copy", "cudaMemcpyAsync", device.index);
  if (waits) {
    CheckCuda(cudaStreamSynchronize(handle), "copy", "cudaStreamSynchronize", device.index);
  }
}

void FillZero(void* dst, Device device, int64_t bytes, Stream* stream) {
  if (bytes <= 0) return;
  if (device.is_cpu()) {
    std::memset(dst, 0, bytes);
    return;
  }
  Use(device, "fill");
  auto handle = stream ? static_cast<cudaStream_t>(stream->handle()) : nullptr;
  if (!handle) WaitForDevice(device);
  auto* recorder = handle ? StepRecorder::Of(*stream) : nullptr;
  if (recorder && !recorder->Issue(Piece::kFill, dst, bytes)) return;
  CheckCuda(cudaMemsetAsync(dst, 0, bytes, handle), "fill", "cudaMemsetAsync", device.index);
  if (!handle) WaitForDevice(device);
}

}  // namespace hone::runtime
