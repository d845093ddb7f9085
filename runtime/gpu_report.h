// What NVIDIA's driver and libraries say of themselves on this machine. They are looked up while
// the program runs, so that a build without CUDA, and a machine without GPUs, can report too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hone::runtime {

struct GpuReport {
  struct Gpu {
    std::string name, uuid;
    int64_t memory_bytes = 0;
    int capability = 0;  // 90 for sm_90
    int nvlinks = 0;     // links that are up
  };
  std::vector<Gpu> gpus;
  std::string driver;               // "580.65.06"; "" when there is no driver
  std::string cublas, cudnn, nccl;  // "13.1.0"; "" when the library is not found
  std::string nvrtc;  // the same; without it cuDNN has no attention, which is no obstacle

  // "" when hone's CUDA backend can run here, else what is in the way: no driver, one older than
  // CUDA 13 wants, no GPU, or libraries that are missing or too old. Where CUDA offers `usable`
  // GPUs only libraries can be: a container may lack the driver's management library, and an older
  // driver do with NVIDIA's forward compatibility.
  std::string Obstacle(int usable = 0) const;
};

inline constexpr int kLeastDriver = 580;  // CUDA 13's

GpuReport InspectGpus();

// Whether this program has the CUDA backend. Defined in device_cuda.cc and device_no_cuda.cc.
bool CudaIsBuilt();
// What CUDA answers where it offers this process no device: "cudaErrorSystemNotReady (…)"; "" else.
std::string CudaObstacle();

}  // namespace hone::runtime
