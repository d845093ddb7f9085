// One arrow: runtime ← kernels ← parallel ← model ← rl ← launcher, and data → runtime, used by rl
// and launcher. Reads every source's includes and names those that point the other way, and the
// headers of libraries that are included outside the one place that may know them.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace hone {
namespace {

using ::testing::IsEmpty;

// What each folder may include besides itself.
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"runtime", {}},
    {"kernels", {"runtime"}},
    {"parallel", {"runtime", "kernels"}},
    {"model", {"runtime", "kernels", "parallel"}},
    {"data", {"runtime"}},
    {"rl", {"runtime", "kernels", "parallel", "model", "data"}},
    {"launcher", {"runtime", "kernels", "parallel", "model", "data", "rl"}},
};

struct Library {
  std::string name;
  std::regex header;   // as included
  std::regex allowed;  // paths that may include it
};
const std::vector<Library> kLibraries = {
    {"HDF5", std::regex("hdf5.*|H5[A-Z].*"), std::regex("runtime/checkpoint/.*\\.cc")},
    {"MPI", std::regex("mpi\\.h|mpi-ext\\.h"), std::regex("parallel/comm/.*\\.cc")},
    {"NCCL", std::regex("nccl.*\\.h"), std::regex("parallel/comm/nccl.*")},
    {"gRPC and protobuf", std::regex("grpc.*|google/protobuf/.*|.*\\.pb\\.h"),
     std::regex("rl/rollout/.*|launcher/.*\\.cc")},
    {"CUDA", std::regex("cuda.*|cublas.*|cudnn.*|driver_types\\.h|cuda/.*"),
     std::regex("runtime/(device|cuda_check).*|(.*/)?[a-z0-9_]*cuda\\.(cu|cuh|cc|h)|"
                "kernels/cuda/.*|parallel/comm/nccl.*")},
    {"yaml-cpp", std::regex("yaml-cpp/.*"), std::regex("runtime/config.*\\.cc")},
};

struct Include {
  std::string file;  // "kernels/norm/rms_norm.cc"
  int line;
  std::string header;
};

std::vector<Include> IncludesOf(const std::filesystem::path& path, const std::string& file) {
  static const std::regex kDirective(R"(^\s*#\s*include\s*[<"]([^">]+)[">].*)");
  std::vector<Include> includes;
  std::ifstream in(path);
  std::string text;
  for (int line = 1; std::getline(in, text); ++line) {
    std::smatch match;
    if (std::regex_match(text, match, kDirective)) includes.push_back({file, line, match[1]});
  }
  return includes;
}

std::vector<Include> AllIncludes() {
  namespace fs = std::filesystem;
  std::vector<Include> includes;
  for (const auto& [folder, below] : kMayInclude) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(HONE_SOURCE_DIR) / folder)) {
      std::string extension = entry.path().extension();
      bool source =
          extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh";
      if (!source) continue;
      std::string file = fs::relative(entry.path(), HONE_SOURCE_DIR).string();
      for (Include& include : IncludesOf(entry.path(), file)) includes.push_back(include);
    }
  }
  return includes;
}

// "" when the include is allowed, else what is wrong with it.
std::string Fault(const Include& include) {
  std::string place = include.file + ":" + std::to_string(include.line) + ": ";
  std::string from = include.file.substr(0, include.file.find('/'));
  std::string to = include.header.substr(0, include.header.find('/'));
  bool known = include.header.find('/') != std::string::npos && kMayInclude.contains(to);
  if (known && to != from && !kMayInclude.at(from).contains(to)) {
    return place + from + "/ may not include " + include.header;
  }
  for (const Library& library : kLibraries) {
    bool theirs = std::regex_match(include.header, library.header) && !known;
    if (theirs && !std::regex_match(include.file, library.allowed)) {
      return place + library.name + " is not to be known here: " + include.header;
    }
  }
  return "";
}

TEST(IncludeDirectionTest, EveryIncludeFollowsTheArrow) {
  std::vector<Include> includes = AllIncludes();
  EXPECT_GT(includes.size(), 100u) << "found too few sources under " << HONE_SOURCE_DIR;
  std::vector<std::string> faults;
  for (const Include& include : includes) {
    std::string fault = Fault(include);
    if (!fault.empty()) faults.push_back(fault);
  }
  EXPECT_THAT(faults, IsEmpty());
}

TEST(IncludeDirectionTest, TheRulesCatchWhatTheyShould) {
  auto refused = [](const std::string& file, const std::string& header) {
    return !Fault({file, 1, header}).empty();
  };
  EXPECT_TRUE(refused("runtime/tensor.cc", "kernels/simd.h"));
  EXPECT_TRUE(refused("kernels/norm/rms_norm.h", "parallel/mesh.h"));
  EXPECT_TRUE(refused("data/packer.cc", "kernels/simd.h"));
  EXPECT_TRUE(refused("model/model.cc", "data/packer.h"));
  EXPECT_FALSE(refused("rl/stages/sft.cc", "data/packer.h"));
  EXPECT_TRUE(refused("runtime/slab.cc", "hdf5.h"));
  EXPECT_TRUE(refused("runtime/checkpoint/checkpoint.h", "hdf5.h"));
  EXPECT_FALSE(refused("runtime/checkpoint/hdf5_file.cc", "hdf5.h"));
  EXPECT_TRUE(refused("parallel/mesh.cc", "mpi.h"));
  EXPECT_FALSE(refused("parallel/comm/mpi_process_group.cc", "mpi.h"));
  EXPECT_TRUE(refused("parallel/comm/mpi_process_group.cc", "nccl.h"));
  EXPECT_TRUE(refused("rl/reward/math.cc", "grpcpp/grpcpp.h"));
  EXPECT_TRUE(refused("kernels/linear/linear_cpu.cc", "cuda_runtime.h"));
  EXPECT_FALSE(refused("kernels/linear/linear_cuda.cu", "cublasLt.h"));
  EXPECT_FALSE(refused("kernels/cuda/launch.h", "cuda_runtime.h"));
  EXPECT_TRUE(refused("kernels/dispatch.h", "cuda_runtime.h"));
  EXPECT_TRUE(refused("runtime/config.h", "yaml-cpp/yaml.h"));
}

}  // namespace
}  // namespace hone
