// The CUDA runtime's functions, on the CPU.
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "tests/cuda_emulation/arena.h"

namespace hone::cuda_emulation {

// Work that was captured, to be run any number of times.
struct EmulatedGraph {
  std::vector<std::function<bool()>> work;
};

// Work that waits is run when somebody waits for it, in order.
struct EmulatedStream {
  std::deque<std::function<bool()>> work;
  std::unique_ptr<EmulatedGraph> captured;  // not null while work is captured instead
};

// Has happened when its stream got to it.
struct EmulatedEvent {
  EmulatedStream* stream = nullptr;
  std::shared_ptr<bool> happened;
};

struct EmulatedPool {};

namespace {

struct Machine {
  std::recursive_mutex mutex;
  Arena arena;
  std::set<EmulatedStream*> streams;
  EmulatedStream legacy;
  EmulatedPool pool;
  std::unordered_map<void*, size_t> pinned;
  std::unordered_map<const void*, int> shared_bytes;  // that a kernel was allowed
  std::string failure;
  cudaError_t sticky = cudaSuccess;  // of work that failed: every later call reports it
};

Machine& machine() {
  static Machine* m = new Machine;  // never destroyed: tensors may outlive statics
  return *m;
}

thread_local int current_device = 0;

class Locked {
 public:
  Locked() : lock_(machine().mutex) {}

 private:
  std::lock_guard<std::recursive_mutex> lock_;
};

// Runs a stream's work, all of it or until `happened`; the arena is open all the while.
bool RunWork(EmulatedStream* stream, const bool* happened) {
  Machine& m = machine();
  EmulatedStream& s = stream ? *stream : m.legacy;
  if (s.work.empty()) return true;
  bool ok = true;
  m.arena.Open();
  while (!s.work.empty() && !(happened && *happened)) {
    std::function<bool()> work = std::move(s.work.front());
    s.work.pop_front();
    ok = work() && ok;
  }
  m.arena.Close();
  return ok;
}

bool Captured(const EmulatedStream* stream) { return stream && stream->captured; }

cudaError_t Drain(EmulatedStream* stream) {
  if (Captured(stream)) return cudaErrorStreamCaptureUnsupported;
  Machine& m = machine();
  if (!RunWork(stream, nullptr)) m.sticky = cudaErrorLaunchFailure;
  return std::exchange(m.sticky, cudaSuccess);
}

cudaError_t DrainAll() {
  cudaError_t status = Drain(nullptr);
  for (EmulatedStream* s : machine().streams) {
    if (cudaError_t e = Drain(s); e != cudaSuccess) status = e;
  }
  return status;
}

// In order behind what the stream has; at once unless streams are lazy.
cudaError_t Push(EmulatedStream* stream, std::function<bool()> work) {
  if (Captured(stream)) {
    stream->captured->work.push_back(std::move(work));
    return cudaSuccess;
  }
  (stream ? *stream : machine().legacy).work.push_back(std::move(work));
  return settings().lazy_streams ? cudaSuccess : Drain(stream);
}

bool Valid(const void* ptr, size_t bytes) {
  Machine& m = machine();
  return !m.arena.Holds(ptr) || m.arena.Inside(ptr, static_cast<int64_t>(bytes));
}

bool IsOrdinaryHost(const void* ptr) {
  Machine& m = machine();
  if (m.arena.Holds(ptr)) return false;
  for (auto& [base, bytes] : m.pinned) {
    if (ptr >= base && ptr < static_cast<char*>(base) + bytes) return false;
  }
  return true;
}

bool FreeChecked(void* ptr) {
  if (machine().arena.Free(ptr)) return true;
  machine().failure = "something wrote behind the end of an allocation that is now freed";
  return false;
}

bool KindFits(const void* dst, const void* src, cudaMemcpyKind kind) {
  if (kind == cudaMemcpyDefault) return true;
  bool dst_device = machine().arena.Holds(dst), src_device = machine().arena.Holds(src);
  return dst_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
         src_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
}

}  // namespace

cudaError_t Enqueue(cudaStream_t stream, std::function<bool()> work) {
  Locked lock;
  return Push(stream, [work = std::move(work)] {
    bool ok = work();
    if (!ok) machine().failure = LastFailure();
    return ok;
  });
}

}  // namespace hone::cuda_emulation

using namespace hone::cuda_emulation;

const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t status) {
  if (status == cudaErrorLaunchFailure) return machine().failure.c_str();
  return cudaGetErrorName(status);
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = settings().devices;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= settings().devices) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated on the CPU", static_cast<size_t>(settings().memory_bytes), 9, 0, 4};
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 * 1024;
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Locked lock;
  *total = settings().memory_bytes;
  *free = settings().memory_bytes - machine().arena.used();
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  Locked lock;
  return DrainAll();
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  Locked lock;
  *stream = new EmulatedStream;
  machine().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Locked lock;
  cudaError_t status = Drain(stream);
  machine().streams.erase(stream);
  delete stream;
  return status;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Locked lock;
  return Drain(stream);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  Locked lock;
  if (Captured(stream)) return cudaErrorStreamCaptureUnsupported;
  stream->captured = std::make_unique<EmulatedGraph>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Locked lock;
  if (!Captured(stream)) return cudaErrorInvalidValue;
  *graph = stream->captured.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, uint64_t) {
  *exec = new EmulatedGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  Locked lock;
  cudaError_t status = cudaSuccess;
  for (const auto& work : exec->work) {
    if (cudaError_t e = Push(stream, work); e != cudaSuccess) status = e;
  }
  return status;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmulatedEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Locked lock;
  if (Captured(stream)) return cudaErrorStreamCaptureUnsupported;
  event->stream = stream;
  event->happened = std::make_shared<bool>(false);
  return Push(stream, [happened = event->happened] { return *happened = true; });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Locked lock;
  if (Captured(stream)) return cudaErrorStreamCaptureUnsupported;
  return Push(stream, [from = event->stream, happened = event->happened] {
    return !happened || *happened || RunWork(from, happened.get());  // `from` may be gone by then
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Locked lock;
  bool ok = !event->happened || *event->happened || RunWork(event->stream, event->happened.get());
  return ok ? cudaSuccess : cudaErrorLaunchFailure;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  Locked lock;
  return !event->happened || *event->happened ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaMalloc(void** ptr, size_t bytes) {
  Locked lock;
  *ptr = machine().arena.AllocateShared(static_cast<int64_t>(bytes));
  return *ptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* ptr) {
  Locked lock;
  cudaError_t status = DrainAll();
  if (ptr && machine().arena.OpenElsewhere(ptr)) {
    machine().failure = "memory is freed that another process has open";
    status = machine().sticky = cudaErrorLaunchFailure;
  }
  if (ptr && !FreeChecked(ptr)) status = cudaErrorLaunchFailure;
  return status;
}
cudaError_t cudaMallocAsync(void** ptr, size_t bytes, cudaStream_t stream) {
  Locked lock;
  if (Captured(stream)) return cudaErrorStreamCaptureUnsupported;
  *ptr = machine().arena.Allocate(static_cast<int64_t>(bytes));
  return *ptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

// As on a GPU: of cudaMalloc's memory only, for other processes only. With HONE_EMULATED_IPC=none
// as where the driver has none, in WSL say.
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* ptr) {
  Locked lock;
  const char* ipc = std::getenv("HONE_EMULATED_IPC");
  if (ipc != nullptr && std::strcmp(ipc, "none") == 0) return cudaErrorInvalidValue;
  Arena::File file;
  if (!machine().arena.FileOf(ptr, &file)) return cudaErrorInvalidValue;
  static_assert(sizeof file <= sizeof handle->reserved);
  *handle = {};
  std::memcpy(handle->reserved, &file, sizeof file);
  return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void** ptr, cudaIpcMemHandle_t handle, unsigned) {
  Locked lock;
  Arena::File file;
  std::memcpy(&file, handle.reserved, sizeof file);
  *ptr = file.process == getpid() ? nullptr : machine().arena.Adopt(file);
  return *ptr ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaIpcCloseMemHandle(void* ptr) {
  Locked lock;
  cudaError_t status = DrainAll();
  machine().arena.Return(ptr);
  return status;
}
cudaError_t cudaFreeAsync(void* ptr, cudaStream_t stream) {
  Locked lock;
  if (Captured(stream)) return machine().sticky = cudaErrorStreamCaptureUnsupported;
  cudaError_t status = Push(stream, [ptr] { return FreeChecked(ptr); });
  machine().sticky = status;  // destructors do not look at what this returns; the next call does
  return status;
}
cudaError_t cudaHostAlloc(void** ptr, size_t bytes, unsigned) {
  Locked lock;
  *ptr = std::malloc(bytes);
  machine().pinned[*ptr] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* ptr) {
  Locked lock;
  machine().pinned.erase(ptr);
  std::free(ptr);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  *pool = &machine().pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  Locked lock;
  *static_cast<uint64_t*>(value) = machine().arena.used();
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

cudaError_t cudaMemcpy2DAsync(void* dst, size_t dst_pitch, const void* src, size_t src_pitch,
                              size_t width, size_t rows, cudaMemcpyKind kind, cudaStream_t stream) {
  Locked lock;
  if (width == 0 || rows == 0) return cudaSuccess;
  if (!KindFits(dst, src, kind) || !Valid(dst, (rows - 1) * dst_pitch + width) ||
      !Valid(src, (rows - 1) * src_pitch + width)) {
    return cudaErrorInvalidValue;
  }
  // As on a GPU: ordinary host memory is read, or written, before the call returns.
  const bool ordinary = IsOrdinaryHost(dst) || IsOrdinaryHost(src);
  if (ordinary && Captured(stream)) return cudaErrorStreamCaptureUnsupported;
  cudaError_t status = Enqueue(stream, [=] {
    for (size_t r = 0; r < rows; ++r) {
      std::memmove(static_cast<char*>(dst) + r * dst_pitch,
                   static_cast<const char*>(src) + r * src_pitch, width);
    }
    return true;
  });
  return ordinary && status == cudaSuccess ? Drain(stream) : status;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  Locked lock;
  const auto allowed = machine().shared_bytes.find(kernel);
  *attributes = {0, allowed == machine().shared_bytes.end() ? 48 * 1024 : allowed->second};
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  Locked lock;
  machine().shared_bytes[kernel] = value;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return cudaMemcpy2DAsync(dst, bytes, src, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind) {
  Locked lock;
  cudaError_t status = cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
  return status == cudaSuccess ? Drain(nullptr) : status;
}
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t stream) {
  Locked lock;
  if (!Valid(dst, bytes)) return cudaErrorInvalidValue;
  return Enqueue(stream, [=] {
    std::memset(dst, value, bytes);
    return true;
  });
}
