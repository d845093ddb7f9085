// Included by the wrappers of NVIDIA's libraries only.
#pragma once

#include <cuda_runtime.h>

#include <string_view>

#include "runtime/context.h"
#include "runtime/cuda_check.h"
#include "runtime/library_memory.h"
#include "runtime/step_recorder.h"

namespace hone::kernels::cuda {

// Before a library makes what it has not had to make so far, which loads kernels and takes memory.
// A stream that is captured does not bear that: Differs, and the step is run piece by piece. And
// the driver waits for the GPU then, with locks held that an NCCL call needs which a receive on
// ctx's stream waits for: so this waits before, with none. Callers hold no lock of their own
// either.
inline void BeforeFirstUse(Context& ctx, std::string_view op) {
  const int device = ctx.device().index;
  runtime::CheckCuda(cudaSetDevice(device), op, "cudaSetDevice", device);
  auto stream = static_cast<cudaStream_t>(ctx.stream().handle());
  auto capture = cudaStreamCaptureStatusNone;
  runtime::CheckCuda(cudaStreamIsCapturing(stream, &capture), op, "cudaStreamIsCapturing", device);
  if (capture != cudaStreamCaptureStatusNone) throw runtime::StepRecorder::Differs();
  // Not Stream::Synchronize: this is no cut of a step that is being measured.
  runtime::CheckCuda(cudaStreamSynchronize(stream), op, "cudaStreamSynchronize", device);
  runtime::MakeRoomForLibraries(device);
}

}  // namespace hone::kernels::cuda
