// NVIDIA's libraries, loaded when something of theirs is first called: a program with CUDA starts
// where they are absent, and a process that never uses a GPU does not pay for them.
#pragma once

#include <cstdint>
#include <string>

namespace hone::runtime {

// A library as hone wants it. Versions count 10000 to the major and 100 to the minor number.
struct NvidiaLibrary {
  const char* name;
  const char* file;
  int64_t least;        // the oldest version that will do
  const char* package;  // what brings it
};

inline constexpr NvidiaLibrary kCublasLt{"cuBLASLt", "libcublasLt.so.13", 130000,
                                         "cuBLAS of CUDA 13"};
inline constexpr NvidiaLibrary kCudnn{"cuDNN", "libcudnn.so.9", 91200, "cuDNN 9 for CUDA 13"};
inline constexpr NvidiaLibrary kNccl{"NCCL", "libnccl.so.2", 22700, "NCCL 2 for CUDA 13"};
inline constexpr NvidiaLibrary kNvrtc{"NVRTC", "libnvrtc.so.13", 130000, "NVRTC of CUDA 13"};
inline constexpr NvidiaLibrary kNvml{"NVML", "libnvidia-ml.so.1", 0, "NVIDIA's driver"};

std::string VersionText(int64_t version);  // "9.1.0" of 90100; "" of 0

// Sets, where the user has not, what CUDA reads from the environment when it starts. Loading a
// kernel waits until the GPU has nothing to do, and so for ever where a receive waits for a rank
// that waits for this one: all are loaded at the start. Streams share 8 hardware queues unless told
// otherwise, and a send must not queue behind a receive. First in a main: before threads, MPI and
// CUDA.
void SetCudaDefaults();

// Looks for `wanted.file` where the system's loader does (LD_LIBRARY_PATH included), then in lib64
// of $CUDA_HOME and of /usr/local/cuda. It stays loaded: some do not take being unloaded.
class LoadedLibrary {
 public:
  explicit LoadedLibrary(const NvidiaLibrary& wanted);

  // Null where the library or the function is absent.
  template <class Function>
  Function* Find(const char* function) const {
    return reinterpret_cast<Function*>(Address(function));
  }
  // DeviceError naming library and function, where it was looked for, and what to install.
  template <class Function>
  Function* Need(const char* function) const {
    return reinterpret_cast<Function*>(NeededAddress(function));
  }
  // "" where the library is there, else its name and where it was looked for.
  std::string Missing() const;
  // DeviceError where `version`, the library's own, is older than the least.
  void CheckVersion(int64_t version) const;

 private:
  void* Address(const char* function) const;
  void* NeededAddress(const char* function) const;

  NvidiaLibrary wanted_;
  void* handle_ = nullptr;
  std::string tried_;  // each name, and why it could not be opened
};

// With NVRTC cuDNN compiles its attention while the program runs. It asks the loader for it by name
// alone, and NVRTC for a part of its own: what is loaded already is found, wherever it was.
struct Nvrtc {
  int64_t version = 0;  // 0 where it is not there
  std::string missing;  // "" where all of it is there
};
Nvrtc LoadNvrtc();

}  // namespace hone::runtime

// In a table of functions that begins with a LoadedLibrary named `library`: the one of this name,
// with the type that its header gives it.
#define HONE_LIBRARY_FUNCTION(function) \
  decltype(::function)* function = library.Need<decltype(::function)>(#function)
