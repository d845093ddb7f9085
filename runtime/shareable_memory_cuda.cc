#include <algorithm>
#include <cstring>

#include "runtime/cuda_check.h"
#include "runtime/error.h"
#include "runtime/shareable_memory.h"

namespace hone::runtime {
namespace {

constexpr std::string_view kOp = "shareable memory";

void Use(Device device) {
  CheckCuda(cudaSetDevice(device.index), kOp, "cudaSetDevice", device.index);
}

// Of what the device's pool keeps for later.
void TrimPool(Device device) {
  cudaMemPool_t pool = nullptr;
  CheckCuda(cudaDeviceSynchronize(), kOp, "cudaDeviceSynchronize", device.index);
  CheckCuda(cudaDeviceGetDefaultMemPool(&pool, device.index), kOp, "cudaDeviceGetDefaultMemPool",
            device.index);
  CheckCuda(cudaMemPoolTrimTo(pool, 0), kOp, "cudaMemPoolTrimTo", device.index);
}

}  // namespace

std::shared_ptr<void> MakeShareable(Device device, int64_t bytes) {
  Use(device);
  const auto size = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  void* memory = nullptr;
  cudaError_t status = cudaMalloc(&memory, size);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    TrimPool(device);
    status = cudaMalloc(&memory, size);
  }
  CheckCuda(status, kOp, "cudaMalloc", device.index);
  return std::shared_ptr<void>(memory, [device](void* p) {
    cudaSetDevice(device.index);  // from destructors: an earlier failure shows elsewhere
    cudaFree(p);
  });
}

std::string ShareableHandle(Device device, const void* memory) {
  Use(device);
  cudaIpcMemHandle_t handle = {};
  CheckCuda(cudaIpcGetMemHandle(&handle, const_cast<void*>(memory)), kOp, "cudaIpcGetMemHandle",
            device.index);
  return std::string(reinterpret_cast<const char*>(&handle), sizeof handle);
}

std::shared_ptr<void> OpenShareable(Device device, const std::string& bytes) {
  cudaIpcMemHandle_t handle = {};
  if (bytes.size() != sizeof handle) return nullptr;
  std::memcpy(&handle, bytes.data(), sizeof handle);
  Use(device);
  void* memory = nullptr;
  if (cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) {
    cudaGetLastError();  // not an error of a later call
    return nullptr;
  }
  return std::shared_ptr<void>(memory, [device](void* p) {
    cudaSetDevice(device.index);
    cudaIpcCloseMemHandle(p);
  });
}

}  // namespace hone::runtime
