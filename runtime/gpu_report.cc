#include "runtime/gpu_report.h"

#include <dlfcn.h>
#include <fmt/core.h>

#include <cstdlib>

namespace hone::runtime {
namespace {

// A shared library that may be absent. It stays loaded: some do not take being unloaded.
class Library {
 public:
  explicit Library(const char* name) : handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {}
  template <class Function>
  Function* Find(const char* name) const {
    return handle_ ? reinterpret_cast<Function*>(dlsym(handle_, name)) : nullptr;
  }

 private:
  void* handle_;
};

// 90100 with 10000 to the major number: "9.1.0".
std::string VersionText(size_t version, size_t major, size_t minor) {
  if (version == 0) return "";
  return fmt::format("{}.{}.{}", version / major, version % major / minor, version % minor);
}

std::string CublasVersion() {
  auto* version = Library("libcublasLt.so.13").Find<size_t()>("cublasLtGetVersion");
  return version ? VersionText(version(), 10000, 100) : "";
}

std::string CudnnVersion() {
  auto* version = Library("libcudnn.so.9").Find<size_t()>("cudnnGetVersion");
  return version ? VersionText(version(), 10000, 100) : "";
}

std::string NcclLibraryVersion() {
  auto* version = Library("libnccl.so.2").Find<int(int*)>("ncclGetVersion");
  int number = 0;
  if (version == nullptr || version(&number) != 0) return "";
  return VersionText(static_cast<size_t>(number), 10000, 100);
}

// The driver's management library. Its functions return 0 when they succeed.
class Management {
 public:
  using Device = void*;

  Management() : library_("libnvidia-ml.so.1") {}
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
  Library library_;
};

}  // namespace

std::string GpuReport::Obstacle() const {
  if (driver.empty()) return "no NVIDIA driver on this machine";
  if (std::atoi(driver.c_str()) < kLeastDriver) {
    return fmt::format("driver {} is too old: CUDA 13 needs {} or later", driver, kLeastDriver);
  }
  if (gpus.empty()) return "the driver finds no GPU";
  std::string missing;
  auto need = [&missing](const std::string& version, const char* library) {
    if (version.empty()) missing += (missing.empty() ? "" : ", ") + std::string(library);
  };
  need(cublas, "libcublasLt.so.13");
  need(cudnn, "libcudnn.so.9");
  need(nccl, "libnccl.so.2");
  return missing.empty() ? "" : "libraries are missing: " + missing;
}

GpuReport InspectGpus() {
  GpuReport report;
  Management management;
  if (management.Start()) {
    report.driver = management.Driver();
    report.gpus = management.Gpus();
  }
  report.cublas = CublasVersion();
  report.cudnn = CudnnVersion();
  report.nccl = NcclLibraryVersion();
  return report;
}

}  // namespace hone::runtime
