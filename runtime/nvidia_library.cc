#include "runtime/nvidia_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "runtime/error.h"

namespace hone::runtime {
namespace {

std::vector<std::string> PlacesOf(const std::string& file) {
  std::vector<std::string> places = {file};
  if (const char* home = std::getenv("CUDA_HOME")) {
    places.push_back(std::string(home) + "/lib64/" + file);
  }
  places.push_back("/usr/local/cuda/lib64/" + file);
  return places;
}

}  // namespace

std::string VersionText(int64_t version) {
  if (version == 0) return "";
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

void SetCudaDefaults() {
  constexpr int kKeepTheUsers = 0;
  setenv("CUDA_MODULE_LOADING", "EAGER", kKeepTheUsers);
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", kKeepTheUsers);
}

LoadedLibrary::LoadedLibrary(const NvidiaLibrary& wanted) : wanted_(wanted) {
  for (const std::string& place : PlacesOf(wanted.file)) {
    handle_ = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_) return;
    tried_ += (tried_.empty() ? "" : "; ") + std::string(dlerror());
  }
}

void* LoadedLibrary::Address(const char* function) const {
  return handle_ ? dlsym(handle_, function) : nullptr;
}

std::string LoadedLibrary::Missing() const {
  return handle_ ? "" : fmt::format("{} is not there: {}", wanted_.file, tried_);
}

void* LoadedLibrary::NeededAddress(const char* function) const {
  Check<DeviceError>(handle_ != nullptr,
                     "[{}] {} is not there for {}: {}. Install {}, or name its folder in "
                     "LD_LIBRARY_PATH",
                     wanted_.name, wanted_.file, function, tried_, wanted_.package);
  void* address = Address(function);
  Check<DeviceError>(address != nullptr, "[{}] {} has no {}: install {}, version {} or later",
                     wanted_.name, wanted_.file, function, wanted_.package,
                     VersionText(wanted_.least));
  return address;
}

void LoadedLibrary::CheckVersion(int64_t version) const {
  Check<DeviceError>(version >= wanted_.least,
                     "[{}] {} is version {} and too old: install {}, version {} or later",
                     wanted_.name, wanted_.file, VersionText(version), wanted_.package,
                     VersionText(wanted_.least));
}

Nvrtc LoadNvrtc() {
  const LoadedLibrary compiler(kNvrtc);
  auto* version_of = compiler.Find<int(int*, int*)>("nvrtcVersion");
  int major = 0, minor = 0;
  if (!version_of || version_of(&major, &minor) != 0) return {0, compiler.Missing()};
  const std::string part = fmt::format("libnvrtc-builtins.so.{}.{}", major, minor);
  const LoadedLibrary builtins({kNvrtc.name, part.c_str(), kNvrtc.least, kNvrtc.package});
  return {int64_t{major} * 10000 + minor * 100, builtins.Missing()};
}

}  // namespace hone::runtime
