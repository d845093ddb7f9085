// cuBLASLt's functions, found at their first use. Included by cublaslt*_cuda.cc only. What the
// header gives as `…Init` is inline there and calls `…Init_internal` with the size of its object.
#pragma once

#include <cublasLt.h>

#include "runtime/nvidia_library.h"

namespace hone::kernels::cuda {

struct CublasLt {
  runtime::LoadedLibrary library{runtime::kCublasLt};
  HONE_LIBRARY_FUNCTION(cublasLtCreate);
  HONE_LIBRARY_FUNCTION(cublasLtGetStatusString);
  HONE_LIBRARY_FUNCTION(cublasLtGetVersion);
  HONE_LIBRARY_FUNCTION(cublasLtMatmul);
  HONE_LIBRARY_FUNCTION(cublasLtMatmulAlgoCheck);
  HONE_LIBRARY_FUNCTION(cublasLtMatmulAlgoConfigGetAttribute);
  HONE_LIBRARY_FUNCTION(cublasLtMatmulAlgoGetHeuristic);
  HONE_LIBRARY_FUNCTION(cublasLtMatmulDescInit_internal);
  HONE_LIBRARY_FUNCTION(cublasLtMatmulDescSetAttribute);
  HONE_LIBRARY_FUNCTION(cublasLtMatmulPreferenceInit_internal);
  HONE_LIBRARY_FUNCTION(cublasLtMatmulPreferenceSetAttribute);
  HONE_LIBRARY_FUNCTION(cublasLtMatrixLayoutInit_internal);

  CublasLt() { library.CheckVersion(static_cast<int64_t>(cublasLtGetVersion())); }
};

// DeviceError where cuBLASLt cannot be used. Thread safe.
inline const CublasLt& Lt() {
  static const CublasLt functions;
  return functions;
}

}  // namespace hone::kernels::cuda
