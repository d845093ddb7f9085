// NCCL's functions, found at their first use. Included by parallel/comm/nccl*.cc only.
#pragma once

#include <nccl.h>

#include "runtime/nvidia_library.h"

namespace hone::parallel {

struct NcclLibrary {
  runtime::LoadedLibrary library{runtime::kNccl};
  HONE_LIBRARY_FUNCTION(ncclAllGather);
  HONE_LIBRARY_FUNCTION(ncclAllReduce);
  HONE_LIBRARY_FUNCTION(ncclBroadcast);
  HONE_LIBRARY_FUNCTION(ncclCommAbort);
  HONE_LIBRARY_FUNCTION(ncclCommDestroy);
  HONE_LIBRARY_FUNCTION(ncclCommFinalize);
  HONE_LIBRARY_FUNCTION(ncclCommGetAsyncError);
  HONE_LIBRARY_FUNCTION(ncclCommInitRankConfig);
  HONE_LIBRARY_FUNCTION(ncclGetErrorString);
  HONE_LIBRARY_FUNCTION(ncclGetLastError);
  HONE_LIBRARY_FUNCTION(ncclGetUniqueId);
  HONE_LIBRARY_FUNCTION(ncclGetVersion);
  HONE_LIBRARY_FUNCTION(ncclGroupEnd);
  HONE_LIBRARY_FUNCTION(ncclGroupStart);
  HONE_LIBRARY_FUNCTION(ncclRecv);
  HONE_LIBRARY_FUNCTION(ncclReduceScatter);
  HONE_LIBRARY_FUNCTION(ncclSend);

  NcclLibrary() {
    int version = 0;
    ncclGetVersion(&version);
    library.CheckVersion(version);
  }
};

// DeviceError where NCCL cannot be used. Thread safe.
inline const NcclLibrary& Nccl() {
  static const NcclLibrary functions;
  return functions;
}

}  // namespace hone::parallel
