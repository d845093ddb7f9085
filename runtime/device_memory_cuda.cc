// Device memory from the driver's stream-ordered pool, which is the cache: freed memory stays with
// the process and is handed out again, in the order of the stream, without waiting for the device.
#include <mutex>

#include "runtime/allocator.h"
#include "runtime/cuda_check.h"
#include "runtime/error.h"
#include "runtime/library_memory.h"
#include "runtime/memory_counter.h"
#include "runtime/step_recorder.h"

namespace hone::runtime {
namespace {

class CudaAllocator : public Allocator {
 public:
  explicit CudaAllocator(Device device) : Allocator(MakeStream(device)), device_(device) {
    Checked(cudaDeviceGetDefaultMemPool(&pool_, device.index), "cudaDeviceGetDefaultMemPool");
    uint64_t keep_all = UINT64_MAX;
    Checked(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep_all),
            "cudaMemPoolSetAttribute");
  }

  Device device() const override { return device_; }

  void* Allocate(int64_t bytes, MemoryCategory category) override {
    auto* recorder = StepRecorder::Of(*stream());
    if (void* ptr = recorder ? recorder->Allocate(bytes) : nullptr) {
      std::lock_guard lock(mutex_);
      counter_.Add(bytes, category);
      return ptr;
    }
    Use();
    void* ptr = Take(bytes);
    if (!ptr) {  // what other streams freed, and what lies in pieces
      stream()->Synchronize();
      Checked(cudaMemPoolTrimTo(pool_, 0), "cudaMemPoolTrimTo");
      ptr = Take(bytes);
    }
    if (!ptr) ThrowOutOfMemory(bytes, category);
    if (recorder) recorder->Measure(ptr, bytes);
    std::lock_guard lock(mutex_);
    counter_.Add(bytes, category);
    return ptr;
  }

  void Free(void* ptr, int64_t bytes, MemoryCategory category) override {
    {
      std::lock_guard lock(mutex_);
      counter_.Remove(bytes, category);
    }
    if (DeviceArena::GiveBack(ptr)) return;
    if (auto* recorder = StepRecorder::Of(*stream()); recorder && recorder->Keep(ptr)) return;
    cudaSetDevice(device_.index);
    cudaFreeAsync(ptr, Handle());  // from destructors: an earlier failure shows elsewhere
  }

  MemoryUsage Usage() const override {
    std::lock_guard lock(mutex_);
    MemoryUsage usage = counter_.usage();
    uint64_t reserved = 0;
    Checked(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &reserved),
            "cudaMemPoolGetAttribute");
    usage.reserved = static_cast<int64_t>(reserved);
    return usage;
  }

  void ResetPeaks() override {
    std::lock_guard lock(mutex_);
    counter_.ResetPeaks();
  }

  void ReleaseCached() override {
    Use();
    stream()->Synchronize();
    Checked(cudaMemPoolTrimTo(pool_, 0), "cudaMemPoolTrimTo");
  }

 private:
  void Checked(cudaError_t status, const char* call) const {
    CheckCuda(status, "allocator", call, device_.index);
  }
  void Use() const { Checked(cudaSetDevice(device_.index), "cudaSetDevice"); }
  cudaStream_t Handle() { return static_cast<cudaStream_t>(stream()->handle()); }

  void* Take(int64_t bytes) {
    void* ptr = nullptr;
    cudaError_t status = cudaMallocAsync(&ptr, bytes > 0 ? bytes : 1, Handle());
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      return nullptr;
    }
    Checked(status, "cudaMallocAsync");
    return ptr;
  }

  [[noreturn]] void ThrowOutOfMemory(int64_t bytes, MemoryCategory category) {
    size_t free = 0, total = 0;
    Checked(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    throw DeviceError(
        fmt::format("[allocator] {} has no {:.1f} MiB for {}: {:.1f} of {:.1f} MiB are free on the "
                    "device; this "
                    "process has {}",
                    device_.ToString(), static_cast<double>(bytes) / kMiB,
                    MemoryCategoryName(category), static_cast<double>(free) / kMiB,
                    static_cast<double>(total) / kMiB, DescribeUsage(Usage())));
  }

  static constexpr double kMiB = 1 << 20;

  Device device_;
  cudaMemPool_t pool_ = nullptr;
  mutable std::mutex mutex_;
  MemoryCounter counter_;
};

}  // namespace

void MakeRoomForLibraries(int device) {
  constexpr size_t kLittle = size_t{1} << 30;
  auto checked = [device](cudaError_t status, const char* call) {
    CheckCuda(status, "allocator", call, device);
  };
  checked(cudaSetDevice(device), "cudaSetDevice");
  size_t free = 0, total = 0;
  checked(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  if (free >= kLittle) return;
  cudaMemPool_t pool = nullptr;
  checked(cudaDeviceGetDefaultMemPool(&pool, device), "cudaDeviceGetDefaultMemPool");
  checked(cudaMemPoolTrimTo(pool, 0), "cudaMemPoolTrimTo");
}

std::shared_ptr<Allocator> MakeCudaAllocator(Device device) {
  return std::make_shared<CudaAllocator>(device);
}

}  // namespace hone::runtime
