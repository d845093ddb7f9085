// The part of CUDA's runtime that hone's kernels and device code use, for the emulator
// (emulator.h). Names and meanings are CUDA's; what is not here, kernels do not use.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "tests/cuda_emulation/emulator.h"

#define HONE_CUDA_EMULATED 1

// ---- The language -----------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after the other
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline constexpr int warpSize = 32;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- Synchronisation, warps -------------------------------------------------------------------

using HoneWhere = std::source_location;

inline void __syncthreads(const HoneWhere& where = HoneWhere::current()) {
  hone::cuda_emulation::Barrier(where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, const HoneWhere& where = HoneWhere::current()) {
  hone::cuda_emulation::Exchanged<char>(mask, 0, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline int HoneLane() {
  const auto& d = blockDim;
  const auto& t = threadIdx;
  return static_cast<int>((t.x + d.x * (t.y + d.y * t.z)) % warpSize);
}

// Lane `source` within the caller's segment of `width` lanes; the caller's own value where `inside`
// is false.
template <class T>
T HoneShuffle(unsigned mask, T value, int source, bool inside, const HoneWhere& where) {
  hone::cuda_emulation::Exchanged<T> all(mask, value, where);
  if (!inside) return value;
  if (!(mask >> source & 1u)) {
    hone::cuda_emulation::Fail(
        "a shuffle reads lane " + std::to_string(source) + ", which is not in its mask", where);
  }
  return all[source];
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              const HoneWhere& where = HoneWhere::current()) {
  int first = HoneLane() / width * width;
  return HoneShuffle(mask, value, first + (source % width + width) % width, true, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                  const HoneWhere& where = HoneWhere::current()) {
  int lane = HoneLane(), source = lane ^ lanes;
  return HoneShuffle(mask, value, source, source / width <= lane / width && source < warpSize,
                     where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   const HoneWhere& where = HoneWhere::current()) {
  int lane = HoneLane(), source = lane + static_cast<int>(delta);
  return HoneShuffle(mask, value, source, source / width == lane / width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 const HoneWhere& where = HoneWhere::current()) {
  int lane = HoneLane(), source = lane - static_cast<int>(delta);
  return HoneShuffle(mask, value, source, source >= lane / width * width, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const HoneWhere& where = HoneWhere::current()) {
  hone::cuda_emulation::Exchanged<int> all(mask, predicate, where);
  unsigned votes = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if ((mask >> lane & 1u) && all[lane] != 0) votes |= 1u << lane;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, const HoneWhere& where = HoneWhere::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, const HoneWhere& where = HoneWhere::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

// ---- Atomics: a thread runs alone until it waits ----------------------------------------------

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  T before = *at;
  *at = before + value;
  return before;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  T before = *at;
  *at = std::max(before, value);
  return before;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  T before = *at;
  *at = std::min(before, value);
  return before;
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  T before = *at;
  *at = before | value;
  return before;
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, value);
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  T before = *at;
  if (before == expected) *at = value;
  return before;
}

// ---- Functions of the device ------------------------------------------------------------------

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// ---- The runtime's functions ------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold, cudaMemPoolAttrReservedMemCurrent };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;
inline constexpr unsigned cudaIpcMemLazyEnablePeerAccess = 1;
struct cudaIpcMemHandle_t {
  char reserved[64];
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed,
};

namespace hone::cuda_emulation {
struct EmulatedStream;
struct EmulatedEvent;
struct EmulatedPool;
struct EmulatedGraph;
}  // namespace hone::cuda_emulation
using cudaStream_t = hone::cuda_emulation::EmulatedStream*;
using cudaEvent_t = hone::cuda_emulation::EmulatedEvent*;
using cudaMemPool_t = hone::cuda_emulation::EmulatedPool*;
using cudaGraph_t = hone::cuda_emulation::EmulatedGraph*;
using cudaGraphExec_t = hone::cuda_emulation::EmulatedGraph*;

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor, multiProcessorCount;
};
struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorName(cudaError_t);
const char* cudaGetErrorString(cudaError_t);  // of a failed launch: what the emulator saw
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);

// While a stream is captured, what it is given goes into a graph; to wait for it, or to allocate or
// free in its order, is an error.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, uint64_t flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

cudaError_t cudaMalloc(void** ptr, size_t bytes);
cudaError_t cudaFree(void* ptr);
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* ptr);
cudaError_t cudaIpcOpenMemHandle(void** ptr, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void* ptr);
cudaError_t cudaMallocAsync(void** ptr, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* ptr, cudaStream_t stream);
cudaError_t cudaHostAlloc(void** ptr, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* ptr);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes);

cudaError_t cudaMemcpy(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* dst, size_t dst_pitch, const void* src, size_t src_pitch,
                              size_t width, size_t rows, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* dst, int value, size_t bytes, cudaStream_t stream);

struct cudaFuncAttributes {
  size_t sharedSizeBytes;  // of `__shared__` arrays, which are ordinary ones here
  int maxDynamicSharedSizeBytes;
};
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

namespace hone::cuda_emulation {
// Device work that reads and writes the arena: a kernel's grid, or what stands for a library's
// call.
cudaError_t Enqueue(cudaStream_t stream, std::function<bool()> work);
}  // namespace hone::cuda_emulation

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  namespace emulation = hone::cuda_emulation;
  cudaFuncAttributes attributes = {};
  cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  if (config->dynamicSmemBytes > static_cast<size_t>(attributes.maxDynamicSharedSizeBytes)) {
    return cudaErrorInvalidValue;
  }
  dim3 grid = config->gridDim, block = config->blockDim;
  emulation::LaunchShape shape = {{grid.x, grid.y, grid.z},
                                  {block.x, block.y, block.z},
                                  static_cast<int64_t>(config->dynamicSmemBytes)};
  std::tuple<std::decay_t<Params>...> kept(std::forward<Args>(args)...);
  return emulation::Enqueue(config->stream, [shape, kernel, kept] {
    return emulation::RunGrid(shape, [&] { std::apply(kernel, kept); });
  });
}
