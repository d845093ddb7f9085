#include "launcher/machine_report.h"

#include <fmt/core.h>
#include <sched.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "parallel/comm/mpi_version.h"
#include "runtime/device.h"
#include "runtime/nvidia_library.h"

namespace hone::launcher {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

// The value of the first line of /proc/cpuinfo with this key.
std::string CpuInfo(const std::string& key) {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    size_t colon = line.find(": ");
    if (line.starts_with(key) && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "";
}

std::vector<std::string> InstructionSets() {
  std::istringstream flags(CpuInfo("flags"));
  std::vector<std::string> found;
  for (std::string flag; flags >> flag;) {
    for (const char* known : {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"}) {
      if (flag == known) found.push_back(flag);
    }
  }
  return found;
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::string Join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

}  // namespace

std::string MachineReport::WhyNoGpu() const {
  std::string obstacle = gpu.Obstacle(usable_gpus);
  if (!obstacle.empty()) return obstacle;
  if (!cuda_built) return "this hone is built without CUDA";
  if (usable_gpus > 0) return "";
  return "CUDA offers no device to this process" +
         (cuda_obstacle.empty() ? "" : ": " + cuda_obstacle);
}

std::string MachineReport::ToText() const {
  auto or_none = [](const std::string& text) { return text.empty() ? "not found" : text; };
  std::string text =
      fmt::format("cpu      {} ({})\ncores    {}\nmemory   {:.1f} GiB\nmpi      {}\n", or_none(cpu),
                  Join(isa), cores, static_cast<double>(memory_bytes) / kGiB, or_none(mpi));
  for (const auto& g : gpu.gpus) {
    text += fmt::format("gpu      {}, {:.1f} GiB, sm_{}, {}\n", g.name,
                        static_cast<double>(g.memory_bytes) / kGiB, g.capability,
                        g.nvlinks > 0 ? fmt::format("{} NVLinks", g.nvlinks) : "no NVLink");
  }
  text += fmt::format("cuda     driver {}, cuBLAS {}, cuDNN {}, NCCL {}, NVRTC {}\n",
                      or_none(gpu.driver), or_none(gpu.cublas), or_none(gpu.cudnn),
                      or_none(gpu.nccl), or_none(gpu.nvrtc));
  if (!gpu.cudnn.empty() && gpu.nvrtc.empty()) {
    text += fmt::format("         without {} attention is not cuDNN's but by our own kernels\n",
                        runtime::kNvrtc.file);
  }
  std::string why = WhyNoGpu();
  text += why.empty() ? fmt::format("GPUs     {} can be used\n", usable_gpus)
                      : fmt::format("GPUs     none can be used: {}\n", why);
  return text;
}

std::string MachineReport::ToJson() const {
  nlohmann::ordered_json json;
  json["cpu"] = cpu;
  json["isa"] = isa;
  json["cores"] = cores;
  json["memory_bytes"] = memory_bytes;
  json["mpi"] = mpi;
  json["gpus"] = nlohmann::ordered_json::array();
  for (const auto& g : gpu.gpus) {
    json["gpus"].push_back({{"name", g.name},
                            {"uuid", g.uuid},
                            {"memory_bytes", g.memory_bytes},
                            {"capability", g.capability},
                            {"nvlinks", g.nvlinks}});
  }
  json["cuda"] = {{"built", cuda_built},        {"driver", gpu.driver},  {"cublas", gpu.cublas},
                  {"cudnn", gpu.cudnn},         {"nccl", gpu.nccl},      {"nvrtc", gpu.nvrtc},
                  {"usable_gpus", usable_gpus}, {"obstacle", WhyNoGpu()}};
  return json.dump(2) + "\n";
}

MachineReport InspectMachine() {
  MachineReport report;
  report.cpu = CpuInfo("model name");
  report.isa = InstructionSets();
  report.cores = UsableCores();
  report.memory_bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  report.mpi = parallel::MpiVersion();
  report.gpu = runtime::InspectGpus();
  report.cuda_built = runtime::CudaIsBuilt();
  report.cuda_obstacle = runtime::CudaObstacle();
  report.usable_gpus = runtime::CudaDeviceCount();
  return report;
}

}  // namespace hone::launcher
