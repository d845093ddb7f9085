#include "runtime/gpu_report.h"

#include <fmt/core.h>

#include <cstdio>
#include <cstdlib>

#include "runtime/nvidia_library.h"

namespace hone::runtime {
namespace {

// "" where the library is absent. `function` returns the version.
std::string VersionOf(const NvidiaLibrary& wanted, const char* function) {
  auto* version = LoadedLibrary(wanted).Find<size_t()>(function);
  return version ? VersionText(static_cast<int64_t>(version())) : "";
}

std::string NcclVersion() {
  auto* version = LoadedLibrary(kNccl).Find<int(int*)>("ncclGetVersion");
  int number = 0;
  return version && version(&number) == 0 ? VersionText(number) : "";
}

// The number behind "9.19.0"; 0 where it is none.
int64_t VersionNumber(const std::string& text) {
  int major = 0, minor = 0, patch = 0;
  if (std::sscanf(text.c_str(), "%d.%d.%d", &major, &minor, &patch) != 3) return 0;
  return int64_t{major} * 10000 + minor * 100 + patch;
}

// The driver's management library. Its functions return 0 when they succeed.
class Management {
 public:
  using Device = void*;

  Management() : library_(kNvml) {}
  bool Start() const {
    auto* start = library_.Find<int()>("nvmlInit_v2");
    return start != nullptr && start() == 0;
  }
  std::string Driver() const {
    auto* get = library_.Find<int(char*, unsigned)>("nvmlSystemGetDriverVersion");
    char text[96] = "";
    return get && get(text, sizeof text) == 0 ? text : "";
  }
  std::vector<GpuReport::Gpu> Gpus() const {
    auto* count_of = library_.Find<int(unsigned*)>("nvmlDeviceGetCount_v2");
    auto* handle_of = library_.Find<int(unsigned, Device*)>("nvmlDeviceGetHandleByIndex_v2");
    unsigned count = 0;
    std::vector<GpuReport::Gpu> gpus;
    if (!count_of || !handle_of || count_of(&count) != 0) return gpus;
    for (unsigned i = 0; i < count; ++i) {
      Device device = nullptr;
      if (handle_of(i, &device) == 0) gpus.push_back(Describe(device));
    }
    return gpus;
  }

 private:
  struct Memory {
    uint64_t total, free, used;
  };

  std::string Text(const char* function, Device device) const {
    auto* get = library_.Find<int(Device, char*, unsigned)>(function);
    char text[128] = "";
    return get && get(device, text, sizeof text) == 0 ? text : "";
  }
  GpuReport::Gpu Describe(Device device) const {
    GpuReport::Gpu gpu;
    gpu.name = Text("nvmlDeviceGetName", device);
    gpu.uuid = Text("nvmlDeviceGetUUID", device);
    Memory memory{};
    auto* memory_of = library_.Find<int(Device, Memory*)>("nvmlDeviceGetMemoryInfo");
    if (memory_of && memory_of(device, &memory) == 0) {
      gpu.memory_bytes = static_cast<int64_t>(memory.total);
    }
    int major = 0, minor = 0;
    auto* capability = library_.Find<int(Device, int*, int*)>("nvmlDeviceGetCudaComputeCapability");
    if (capability && capability(device, &major, &minor) == 0) gpu.capability = 10 * major + minor;
    auto* link_state = library_.Find<int(Device, unsigned, int*)>("nvmlDeviceGetNvLinkState");
    for (unsigned link = 0; link_state && link < kMostLinks; ++link) {
      int up = 0;
      if (link_state(device, link, &up) == 0 && up == 1) ++gpu.nvlinks;
    }
    return gpu;
  }

  static constexpr unsigned kMostLinks = 18;
  LoadedLibrary library_;
};

}  // namespace

std::string GpuReport::Obstacle(int usable) const {
  if (usable == 0) {
    if (driver.empty()) return "no NVIDIA driver on this machine";
    if (std::atoi(driver.c_str()) < kLeastDriver) {
      return fmt::format("driver {} is too old: CUDA 13 needs {} or later", driver, kLeastDriver);
    }
    if (gpus.empty()) return "the driver finds no GPU";
  }
  std::string faults;
  auto need = [&faults](const std::string& version, const NvidiaLibrary& wanted) {
    if (VersionNumber(version) >= wanted.least) return;
    if (!faults.empty()) faults += ", ";
    faults += version.empty() ? fmt::format("{} is missing", wanted.file)
                              : fmt::format("{} is version {} and not {} or later", wanted.file,
                                            version, VersionText(wanted.least));
  };
  need(cublas, kCublasLt);
  need(cudnn, kCudnn);
  need(nccl, kNccl);
  return faults;
}

GpuReport InspectGpus() {
  GpuReport report;
  Management management;
  if (management.Start()) {
    report.driver = management.Driver();
    report.gpus = management.Gpus();
  }
  report.cublas = VersionOf(kCublasLt, "cublasLtGetVersion");
  report.cudnn = VersionOf(kCudnn, "cudnnGetVersion");
  report.nccl = NcclVersion();
  const Nvrtc nvrtc = LoadNvrtc();
  if (nvrtc.missing.empty()) report.nvrtc = VersionText(nvrtc.version);
  return report;
}

}  // namespace hone::runtime
