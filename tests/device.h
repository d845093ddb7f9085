// The device that a test runs on. The same program tests the CPU and, with HONE_TEST_DEVICE=cuda, a
// GPU; its `_emulated` twin is linked to tests/cuda_emulation, where the GPU is emulated.
#pragma once

#include <cstdlib>
#include <string_view>

#include "runtime/device.h"
#include "runtime/error.h"

namespace hone {

inline Device TestDevice() {
  const char* name = std::getenv("HONE_TEST_DEVICE");
  if (name == nullptr || std::string_view(name) == "cpu") return Device::Cpu();
  Check<ConfigError>(std::string_view(name) == "cuda",
                     "[test] HONE_TEST_DEVICE is '{}'; cpu or cuda", name);
  Check<DeviceError>(runtime::CudaDeviceCount() > 0,
                     "[test] HONE_TEST_DEVICE=cuda, but there is none");
  return Device::Cuda(0);
}
// Not the emulated one.
inline bool OnGpu() {
  return !TestDevice().is_cpu() &&
         runtime::DescribeDevice(TestDevice()).find("emulated") == std::string::npos;
}

}  // namespace hone
