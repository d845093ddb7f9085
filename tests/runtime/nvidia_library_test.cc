// Libraries that are loaded at their first use. glibc's libm stands for one that is there.
#include "runtime/nvidia_library.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "runtime/error.h"

namespace hone::runtime {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr NvidiaLibrary kPresent{"Present", "libm.so.6", 21400, "the present package"};
constexpr NvidiaLibrary kAbsent{"Absent", "libhone_absent.so.7", 10000, "the absent package"};

std::string MessageOf(const auto& fn) {
  try {
    fn();
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "";
}

struct Functions {
  LoadedLibrary library{kPresent};
  HONE_LIBRARY_FUNCTION(cbrtf);
};

TEST(NvidiaLibrary, FindsFunctionsByNameAndType) {
  Functions functions;
  EXPECT_EQ(functions.cbrtf(27.0f), 3.0f);
}

TEST(NvidiaLibrary, AbsentLibraryNamesWhatWasSoughtAndWhatToInstall) {
  LoadedLibrary library(kAbsent);
  EXPECT_EQ(library.Find<int()>("absentCreate"), nullptr);
  std::string message = MessageOf([&] { library.Need<int()>("absentCreate"); });
  EXPECT_THAT(message,
              AllOf(HasSubstr("[Absent]"), HasSubstr("absentCreate"),
                    HasSubstr("libhone_absent.so.7: cannot open"),
                    HasSubstr("/usr/local/cuda/lib64/libhone_absent.so.7: cannot open"),
                    HasSubstr("Install the absent package"), HasSubstr("LD_LIBRARY_PATH")));
}

TEST(NvidiaLibrary, LooksBelowCudaHome) {
  setenv("CUDA_HOME", "/opt/some_cuda", 1);
  std::string message = MessageOf([&] { LoadedLibrary(kAbsent).Need<int()>("absentCreate"); });
  unsetenv("CUDA_HOME");
  EXPECT_THAT(message, HasSubstr("/opt/some_cuda/lib64/libhone_absent.so.7: cannot open"));
}

TEST(NvidiaLibrary, AbsentFunctionAndOldVersionAskForANewerOne) {
  LoadedLibrary library(kPresent);
  EXPECT_EQ(MessageOf([&] { library.Need<int()>("presentLater"); }),
            "[Present] libm.so.6 has no presentLater: install the present package, version 2.14.0 "
            "or later");
  EXPECT_EQ(MessageOf([&] { library.CheckVersion(21399); }),
            "[Present] libm.so.6 is version 2.13.99 and too old: install the present package, "
            "version 2.14.0 or later");
  library.CheckVersion(21400);
}

// cuDNN and NVRTC itself look by name alone, so by these names all of it must be found.
TEST(Nvrtc, IsFoundByNameOnceItIsLoaded) {
  const Nvrtc nvrtc = LoadNvrtc();
  if (nvrtc.version == 0) {
    EXPECT_THAT(nvrtc.missing, HasSubstr("/usr/local/cuda/lib64/libnvrtc.so.13"));
    GTEST_SKIP() << nvrtc.missing;
  }
  EXPECT_EQ(nvrtc.missing, "");
  EXPECT_GE(nvrtc.version, kNvrtc.least);
  EXPECT_NE(dlopen("libnvrtc.so.13", RTLD_NOW | RTLD_NOLOAD), nullptr);
  const std::string part = "libnvrtc-builtins.so.13." + std::to_string(nvrtc.version / 100 % 100);
  EXPECT_NE(dlopen(part.c_str(), RTLD_NOW | RTLD_NOLOAD), nullptr) << part;
}

TEST(CudaDefaults, KeepWhatTheUserSet) {
  unsetenv("CUDA_MODULE_LOADING");
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1", 1);
  SetCudaDefaults();
  EXPECT_STREQ(std::getenv("CUDA_MODULE_LOADING"), "EAGER");
  EXPECT_STREQ(std::getenv("CUDA_DEVICE_MAX_CONNECTIONS"), "1");
  unsetenv("CUDA_DEVICE_MAX_CONNECTIONS");
  setenv("CUDA_MODULE_LOADING", "LAZY", 1);
  SetCudaDefaults();
  EXPECT_STREQ(std::getenv("CUDA_MODULE_LOADING"), "LAZY");
  EXPECT_STREQ(std::getenv("CUDA_DEVICE_MAX_CONNECTIONS"), "32");
}

}  // namespace
}  // namespace hone::runtime
