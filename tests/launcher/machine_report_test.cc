// What `hone check` says of machines with and without GPUs.
#include "launcher/machine_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "tests/read_json.h"

namespace hone::launcher {
namespace {

using testing::HasSubstr;
using testing::Not;

MachineReport WithGpus() {
  MachineReport m;
  m.cpu = "Some CPU";
  m.isa = {"avx2", "fma"};
  m.cores = 16;
  m.memory_bytes = int64_t{128} << 30;
  m.mpi = "Open MPI v4.1.4";
  m.cuda_built = true;
  m.usable_gpus = 2;
  m.gpu.driver = "580.65.06";
  m.gpu.cublas = "13.1.0";
  m.gpu.cudnn = "9.19.0";
  m.gpu.nccl = "2.28.9";
  m.gpu.nvrtc = "13.0.0";
  for (const char* uuid : {"GPU-a", "GPU-b"}) {
    m.gpu.gpus.push_back({"NVIDIA H200", uuid, int64_t{139} << 30, 90, 18});
  }
  return m;
}

TEST(MachineReport, NamesGpusAndVersions) {
  std::string text = WithGpus().ToText();
  EXPECT_THAT(text, HasSubstr("NVIDIA H200, 139.0 GiB, sm_90, 18 NVLinks"));
  EXPECT_THAT(
      text,
      HasSubstr("driver 580.65.06, cuBLAS 13.1.0, cuDNN 9.19.0, NCCL 2.28.9, NVRTC 13.0.0\n"));
  EXPECT_THAT(text, Not(HasSubstr("our own kernels")));
  EXPECT_THAT(text, HasSubstr("2 can be used"));
  auto json = ParseJson(WithGpus().ToJson());
  EXPECT_EQ(json["gpus"].size(), 2u);
  EXPECT_EQ(json["gpus"][1]["uuid"], "GPU-b");
  EXPECT_EQ(json["cuda"]["obstacle"], "");
  EXPECT_EQ(json["cores"], 16);
}

TEST(MachineReport, SaysWhatIsInTheWay) {
  MachineReport m = WithGpus();
  m.usable_gpus = 0;
  EXPECT_EQ(m.WhyNoGpu(), "CUDA offers no device to this process");
  m.cuda_obstacle = "cudaErrorSystemNotReady (system not yet initialized)";
  EXPECT_EQ(m.WhyNoGpu(),
            "CUDA offers no device to this process: cudaErrorSystemNotReady (system not yet "
            "initialized)");
  m.cuda_built = false;
  EXPECT_EQ(m.WhyNoGpu(), "this hone is built without CUDA");
  m.gpu.cudnn = m.gpu.nccl = "";
  EXPECT_EQ(m.WhyNoGpu(), "libcudnn.so.9 is missing, libnccl.so.2 is missing");
  m.gpu.cudnn = "9.1.0";
  EXPECT_THAT(m.WhyNoGpu(), HasSubstr("libcudnn.so.9 is version 9.1.0 and not 9.12.0 or later"));
  m.gpu.gpus.clear();
  EXPECT_EQ(m.WhyNoGpu(), "the driver finds no GPU");
  m.gpu.driver = "570.10";
  EXPECT_EQ(m.WhyNoGpu(), "driver 570.10 is too old: CUDA 13 needs 580 or later");
  m.gpu.driver = "";
  EXPECT_EQ(m.WhyNoGpu(), "no NVIDIA driver on this machine");
  EXPECT_THAT(m.ToText(), HasSubstr("none can be used: no NVIDIA driver on this machine"));
}

TEST(MachineReport, WithoutNvrtcCudnnHasNoAttention) {
  MachineReport m = WithGpus();
  m.gpu.nvrtc = "";
  EXPECT_EQ(m.WhyNoGpu(), "");
  EXPECT_THAT(m.ToText(), HasSubstr("without libnvrtc.so.13 attention is not cuDNN's"));
  EXPECT_EQ(ParseJson(m.ToJson())["cuda"]["nvrtc"], "");
}

TEST(MachineReport, WhatCudaOffersCanBeUsed) {
  MachineReport m = WithGpus();
  m.gpu.driver = "570.10";  // with forward compatibility
  EXPECT_EQ(m.WhyNoGpu(), "");
  m.gpu.driver = "";  // no management library in this container
  m.gpu.gpus.clear();
  EXPECT_EQ(m.WhyNoGpu(), "");
  m.gpu.nccl = "";
  EXPECT_EQ(m.WhyNoGpu(), "libnccl.so.2 is missing");
}

TEST(MachineReport, KnowsThisMachine) {
  MachineReport m = InspectMachine();
  EXPECT_EQ(m.memory_bytes, int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE));
  EXPECT_GE(m.cores, 1);
  EXPECT_LE(m.cores, sysconf(_SC_NPROCESSORS_CONF));
  EXPECT_THAT(m.mpi, HasSubstr("MPI"));
}

}  // namespace
}  // namespace hone::launcher
