// cuDNN's functions, found at their first use. Its frontend calls them by their names, so these are
// functions of the same names that hand each call on. They are hidden: cuDNN's own parts must go on
// finding its own. (The frontend can load cuDNN itself, but then loads another CUDA runtime too.)
#include <cudnn.h>

#include <cstdio>

#include "runtime/nvidia_library.h"

namespace {

struct CudnnFunctions {
  hone::runtime::Nvrtc nvrtc = hone::runtime::LoadNvrtc();  // before cuDNN looks for it
  hone::runtime::LoadedLibrary library{hone::runtime::kCudnn};
  HONE_LIBRARY_FUNCTION(cudnnBackendCreateDescriptor);
  HONE_LIBRARY_FUNCTION(cudnnBackendDestroyDescriptor);
  HONE_LIBRARY_FUNCTION(cudnnBackendExecute);
  HONE_LIBRARY_FUNCTION(cudnnBackendFinalize);
  HONE_LIBRARY_FUNCTION(cudnnBackendGetAttribute);
  HONE_LIBRARY_FUNCTION(cudnnBackendSetAttribute);
  HONE_LIBRARY_FUNCTION(cudnnCreate);
  HONE_LIBRARY_FUNCTION(cudnnDestroy);
  HONE_LIBRARY_FUNCTION(cudnnGetErrorString);
  HONE_LIBRARY_FUNCTION(cudnnGetLastErrorString);
  HONE_LIBRARY_FUNCTION(cudnnGetStream);
  HONE_LIBRARY_FUNCTION(cudnnGetVersion);
  HONE_LIBRARY_FUNCTION(cudnnSetStream);

  CudnnFunctions() {
    library.CheckVersion(static_cast<int64_t>(cudnnGetVersion()));
    if (nvrtc.missing.empty()) return;
    std::fprintf(
        stderr,
        "hone: cuDNN will hardly have any attention, and our own kernels serve: %s. Install "
        "%s, or name its folder in LD_LIBRARY_PATH\n",
        nvrtc.missing.c_str(), hone::runtime::kNvrtc.package);
  }
};

// DeviceError where cuDNN cannot be used. Thread safe.
const CudnnFunctions& Cudnn() {
  static const CudnnFunctions functions;
  return functions;
}

}  // namespace

#define HONE_FORWARD(Result, name, parameters, arguments)                   \
  extern "C" __attribute__((visibility("hidden"))) Result name parameters { \
    return Cudnn().name arguments;                                          \
  }

HONE_FORWARD(cudnnStatus_t, cudnnBackendCreateDescriptor,
             (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor),
             (type, descriptor))
HONE_FORWARD(cudnnStatus_t, cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor),
             (descriptor))
HONE_FORWARD(cudnnStatus_t, cudnnBackendExecute,
             (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),
             (handle, plan, pack))
HONE_FORWARD(cudnnStatus_t, cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor),
             (descriptor))
HONE_FORWARD(cudnnStatus_t, cudnnBackendGetAttribute,
             (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
              cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count, void* elements),
             (descriptor, name, type, wanted, count, elements))
HONE_FORWARD(cudnnStatus_t, cudnnBackendSetAttribute,
             (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
              cudnnBackendAttributeType_t type, int64_t count, const void* elements),
             (descriptor, name, type, count, elements))
HONE_FORWARD(cudnnStatus_t, cudnnCreate, (cudnnHandle_t * handle), (handle))
HONE_FORWARD(cudnnStatus_t, cudnnDestroy, (cudnnHandle_t handle), (handle))
HONE_FORWARD(const char*, cudnnGetErrorString, (cudnnStatus_t status), (status))
HONE_FORWARD(void, cudnnGetLastErrorString, (char* message, size_t size), (message, size))
HONE_FORWARD(cudnnStatus_t, cudnnGetStream, (cudnnHandle_t handle, cudaStream_t* stream),
             (handle, stream))
HONE_FORWARD(size_t, cudnnGetVersion, (), ())
HONE_FORWARD(cudnnStatus_t, cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream),
             (handle, stream))
#undef HONE_FORWARD
