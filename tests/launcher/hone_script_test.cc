// `./hone` itself: what it does again when something has changed, and that it does nothing when
// not. With stand-ins for whatever it calls.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include "tests/launcher/program.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class HoneScriptTest : public testing::Test {
 protected:
  HoneScriptTest() {
    fs::copy_file(HONE_SOURCE_DIR "/hone", folder_ / "hone");
    fs::create_directories(folder_ / "bin");
    Write("bin/dpkg-query", "shift 3; for p; do echo \"$p hold ok installed\"; done\n");
    Write("bin/cmake",
          "mkdir -p build; touch build/build.ninja; echo 'echo hone \"$@\"' > build/hone; "
          "chmod +x build/hone; [[ \"$*\" != *=ON* || ! -f refuse ]]\n");
    Write("bin/ninja", "echo 'ninja: no work to do.'\n");
    Write("bin/python3", "exit 1\n");  // no network
    Write("bin/apt-get", "");
  }
  void Write(const std::string& name, const std::string& text) {
    fs::create_directories(fs::path(folder_ / name).parent_path());
    std::ofstream(folder_ / name) << "#!/bin/bash\ncd " << folder_.path()
                                  << "\necho \"$(basename $0) $*\" >> calls\n"
                                  << text;
    chmod((folder_ / name).c_str(), 0755);
  }
  // What it called, but for ninja and dpkg-query.
  std::string Run(const std::string& command, const std::string& cuda = "", int code = 0) {
    fs::remove(folder_ / "calls");
    Words words = {"env",
                   "-u",
                   "HONE_CUDA",
                   "-u",
                   "HONE_BUILD_DIR",
                   "PATH=" + (folder_ / "bin") + ":/usr/bin:/bin",
                   "CUDA_HOME=" + (folder_ / "cuda")};
    if (!cuda.empty()) words.push_back("HONE_CUDA=" + cuda);
    words.insert(words.end(), {folder_ / "hone", command});
    Program program(words, folder_ / "output");
    EXPECT_EQ(program.Wait(), code) << program.output();
    std::string called;
    std::ifstream calls(folder_ / "calls");
    for (std::string line; std::getline(calls, line);) {
      if (!line.starts_with("ninja") && !line.starts_with("dpkg-query")) called += line + "\n";
    }
    return called;
  }
  runtime::TemporaryFolder folder_;
};

TEST_F(HoneScriptTest, CudaIsLookedForWhereverThatMakesADifference) {
  const std::string first = Run("status");
  EXPECT_THAT(first, HasSubstr("-DHONE_CUDA=AUTO"));
  EXPECT_THAT(first, HasSubstr("-G Ninja"));
  EXPECT_THAT(first, Not(HasSubstr("apt-get"))) << "held packages are installed too";
  EXPECT_EQ(Run("status"), "");
  EXPECT_EQ(ReadFile(folder_ / "output"), "hone status\n");
  Write("cuda/bin/nvcc", "");
  EXPECT_THAT(Run("status"), HasSubstr("-DHONE_CUDA=AUTO")) << "CUDA was installed";
  EXPECT_EQ(Run("status"), "");
  EXPECT_THAT(Run("status", "OFF"), HasSubstr("-DHONE_CUDA=OFF"));
  EXPECT_EQ(Run("status"), "") << "as it was said last";
  EXPECT_THAT(Run("status", "ON"), HasSubstr("-DHONE_CUDA=ON"));
  EXPECT_EQ(Run("status", "ON"), "");
}

TEST_F(HoneScriptTest, WhatWasRefusedIsNotRemembered) {
  Run("status", "OFF");
  std::ofstream(folder_ / "refuse") << "";
  EXPECT_THAT(Run("status", "ON", 1), HasSubstr("-DHONE_CUDA=ON"));
  EXPECT_THAT(Run("status"), HasSubstr("-DHONE_CUDA=OFF"));
  EXPECT_EQ(Run("status"), "");
}

TEST_F(HoneScriptTest, BuildLooksAgainForWhatWasNotToBeHad) {
  Write("cuda/bin/nvcc", "");
  EXPECT_THAT(Run("status"), HasSubstr("python3 -m pip download"));
  EXPECT_EQ(Run("status"), "");
  Write("bin/python3",
        "case \"$*\" in *extract*) mkdir -p build/cudnn-frontend/wheel/include; "
        "touch build/cudnn-frontend/wheel/include/cudnn_frontend.h ;; esac\n");
  const std::string fetched = Run("build");
  EXPECT_LT(fetched.find("pip download"), fetched.find("-DHONE_CUDA=AUTO"));
  EXPECT_TRUE(fs::exists(folder_ / "build/cudnn-frontend/include/cudnn_frontend.h"));
  EXPECT_THAT(Run("build"), Not(HasSubstr("python3")));
}

TEST_F(HoneScriptTest, TestEndsWithWhatWasLeftOutAndTheCodeOfCtest) {
  std::ofstream(folder_ / "log") << "[ RUN      ] A.B\n/a/b.cc:7: Skipped\nno unit\n\n"
                                    "[  SKIPPED ] A.B (0 ms)\n/a/b.cc:9: Skipped\nno SLURM\n\n"
                                    "/a/c.cc:7: Skipped\nno unit\n/a/d.cc:7: Skipped\n\n";
  Write("bin/ctest",
        "mkdir -p build/Testing/Temporary; mv log build/Testing/Temporary/LastTest.log"
        "; exit 8\n");
  Run("test", "", 8);
  EXPECT_THAT(ReadFile(folder_ / "output"), HasSubstr("      2  no unit\n      1  no SLURM\n"));
}

}  // namespace
}  // namespace hone::launcher
