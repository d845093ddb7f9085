// What `hone check` finds on the machine that it runs on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/gpu_report.h"

namespace hone::launcher {

struct MachineReport {
  std::string cpu;               // the model's name
  std::vector<std::string> isa;  // of those that the kernels have forms for
  int cores = 0;                 // that this process may use
  int64_t memory_bytes = 0;
  std::string mpi;
  bool cuda_built = false;
  std::string cuda_obstacle;  // runtime::CudaObstacle
  runtime::GpuReport gpu;
  int usable_gpus = 0;  // that this process could train on

  // "" when GPUs can be used, else why not.
  std::string WhyNoGpu() const;
  std::string ToText() const;
  std::string ToJson() const;  // one object
};

MachineReport InspectMachine();

}  // namespace hone::launcher
