#include "runtime/cuda_check.h"

#include "runtime/error.h"

namespace hone::runtime {

void ThrowCudaError(cudaError_t status, std::string_view op, std::string_view call, int device) {
  throw DeviceError(fmt::format("[{}] {} on cuda:{} failed: {} ({})", op, call, device,
                                cudaGetErrorName(status), cudaGetErrorString(status)));
}

}  // namespace hone::runtime
