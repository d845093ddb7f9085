// Kernels with and without faults, in every order of threads.
#include "tests/cuda_emulation/emulator.h"

#include <gmock/gmock.h>

#include <vector>

#include "kernels/cuda/element.h"
#include "kernels/cuda/reduce.h"
#include "tests/device.h"

namespace hone::cuda_emulation {
namespace {

using kernels::cuda::Launch;
using ::testing::HasSubstr;

constexpr int kThreads = 64;

// Runs `work` in ascending, descending and ten random orders.
void InEveryOrder(const std::function<void()>& work) {
  Settings before = settings();
  for (Order order : {Order::kAscending, Order::kDescending}) {
    settings().order = order;
    work();
  }
  settings().order = Order::kRandom;
  for (settings().seed = 1; settings().seed <= 10; ++settings().seed) work();
  settings() = before;
}

std::vector<float> Ramp(int n) {
  std::vector<float> values(n);
  for (int i = 0; i < n; ++i) values[i] = static_cast<float>(i + 1);
  return values;
}

// y[i] = the block's x[i + 1] (the last wraps around), through shared memory.
template <bool kWithBarrier>
__global__ void Rotate(const float* x, float* y) {
  auto* shared = kernels::cuda::DynamicShared<float>();
  unsigned i = threadIdx.x, base = blockIdx.x * blockDim.x;
  shared[i] = x[base + i];
  if (kWithBarrier) __syncthreads();
  y[base + i] = shared[(i + 1) % blockDim.x];
}

template <bool kWithBarrier>
bool RotatesRightly() {
  Context ctx(Device::Cuda(0));
  std::vector<float> x = Ramp(3 * kThreads);
  Tensor x_N = kernels::cuda::Upload(ctx, std::span<const float>(x)), y_N = ctx.EmptyLike(x_N);
  Launch(ctx, "rotate", Rotate<kWithBarrier>, {3, kThreads, kThreads * 4}, x_N.data<float>(),
         y_N.data<float>());
  std::vector<float> y = runtime::ToVector<float>(y_N);
  for (int i = 0; i < 3 * kThreads; ++i) {
    if (y[i] != x[i / kThreads * kThreads + (i + 1) % kThreads]) return false;
  }
  return true;
}

TEST(Emulator, RunsBlocksThreadsAndSharedMemory) {
  InEveryOrder([] { EXPECT_TRUE(RotatesRightly<true>()); });
}

TEST(Emulator, SeesAMissingBarrierInSomeOrder) {
  int wrong = 0;
  InEveryOrder([&] { wrong += !RotatesRightly<false>(); });
  EXPECT_GT(wrong, 0);
}

__global__ void Sums(const float* x, float* sum, float* largest, unsigned* votes, float* shifted) {
  float value = x[threadIdx.x];
  float s = kernels::cuda::BlockSum(value);
  float m = kernels::cuda::BlockReduce(value, kernels::cuda::Max{}, -1.0f);
  unsigned even = __ballot_sync(kernels::cuda::kAllLanes, threadIdx.x % 2 == 0);
  shifted[threadIdx.x] = __shfl_down_sync(kernels::cuda::kAllLanes, value, 4, 8);
  if (threadIdx.x == kThreads - 1) {
    *sum = s;
    *largest = m;
    *votes = even;
  }
}

TEST(Emulator, ShufflesVotesAndReduces) {
  InEveryOrder([] {
    Context ctx(Device::Cuda(0));
    std::vector<float> x = Ramp(kThreads);
    Tensor x_N = kernels::cuda::Upload(ctx, std::span<const float>(x));
    Tensor shifted_N = ctx.EmptyLike(x_N), results = ctx.Empty({2}, DType::kF32);
    Tensor votes = ctx.Empty({1}, DType::kI32);
    Launch(ctx, "sums", Sums, {1, kThreads}, x_N.data<float>(), results.data<float>(),
           results.data<float>() + 1, reinterpret_cast<unsigned*>(votes.raw()),
           shifted_N.data<float>());
    EXPECT_EQ(runtime::ToVector<float>(results), (std::vector<float>{65 * 32, 64}));
    EXPECT_EQ(runtime::ToVector<int32_t>(votes)[0], 0x55555555);
    std::vector<float> shifted = runtime::ToVector<float>(shifted_N);
    for (int i = 0; i < kThreads; ++i) EXPECT_EQ(shifted[i], i % 8 < 4 ? x[i + 4] : x[i]) << i;
  });
}

__global__ void CountByAtomics(int* count) { atomicAdd(count, 1); }

TEST(Emulator, AddsAtomically) {
  Context ctx(Device::Cuda(0));
  Tensor count = ctx.Zeros({1}, DType::kI32);
  Launch(ctx, "count", CountByAtomics, {dim3(2, 3), dim3(8, 8)}, count.data<int32_t>());
  EXPECT_EQ(runtime::ToVector<int32_t>(count)[0], 6 * 64);
}

// The message of the error that a launch ends with.
template <class... Params, class... Args>
std::string FailureOf(void (*kernel)(Params...), int shared_bytes, Args... args) {
  Context ctx(Device::Cuda(0));
  try {
    Launch(ctx, "faulty", kernel, {1, kThreads, shared_bytes}, args...);
    ctx.stream().Synchronize();
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "";
}

__global__ void HalfReachesTheBarrier() {
  if (threadIdx.x < 10) __syncthreads();
}
__global__ void TwoBarriers() {
  if (threadIdx.x < 10) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void ShuffleWithEndedLanes() {
  if (threadIdx.x % 32 == 7) return;
  __shfl_xor_sync(kernels::cuda::kAllLanes, 1.0f, 1);
}
__global__ void ShuffleFromOutside() {
  if (threadIdx.x % 32 < 8) __shfl_sync(0xffu, 1.0f, 9);
}
__global__ void WriteBehindShared() {
  auto* shared = kernels::cuda::DynamicShared<float>();
  shared[threadIdx.x] = 0;
}

TEST(Emulator, ReportsThreadsThatDoNotMeet) {
  InEveryOrder([] {
    EXPECT_THAT(FailureOf(HalfReachesTheBarrier, 0),
                ::testing::AllOf(HasSubstr("[faulty]"), HasSubstr("10 wait at __syncthreads"),
                                 HasSubstr("54 of 64 have ended")));
    EXPECT_THAT(FailureOf(TwoBarriers, 0), HasSubstr("while other threads wait at that of"));
    EXPECT_THAT(FailureOf(ShuffleWithEndedLanes, 0), HasSubstr("in a warp intrinsic"));
    EXPECT_THAT(FailureOf(ShuffleFromOutside, 0), HasSubstr("lane 9, which is not in its mask"));
  });
}

#if !defined(__SANITIZE_ADDRESS__)  // which ends the program
TEST(Emulator, ReportsWritesBehindSharedMemory) {
  EXPECT_THAT(FailureOf(WriteBehindShared, kThreads * 4 - 4),
              HasSubstr("wrote behind the 252 bytes"));
  EXPECT_EQ(FailureOf(WriteBehindShared, kThreads * 4), "");
}
#endif

#if !defined(__SANITIZE_ADDRESS__)
__global__ void WriteAt(float* at, int64_t index) {
  if (threadIdx.x == 0) at[index] = 1;
}

TEST(Emulator, ReportsAWrongIndexWhenTheMemoryIsFreed) {
  Context ctx(Device::Cuda(0));
  for (int64_t index : {3, 4}) {
    Tensor x = ctx.Zeros({4}, DType::kF32);
    Launch(ctx, "write_at", WriteAt, {1, 32}, x.data<float>(), index);
    x = Tensor();
    if (index == 3) {
      EXPECT_NO_THROW(ctx.stream().Synchronize());
    } else {
      EXPECT_THROW(ctx.stream().Synchronize(), DeviceError);
    }
  }
}
#endif

__global__ void WriteOne(float* at) {
  if (threadIdx.x == 0) *at = 1;
}

TEST(Emulator, RefusesLaunchesThatNoGpuTakes) {
  Context ctx(Device::Cuda(0));
  Tensor x = ctx.Zeros({1}, DType::kF32);
  for (int threads : {0, 33, 2048}) {
    EXPECT_THROW(Launch(ctx, "launch", WriteOne, {1, dim3(threads)}, x.data<float>()), DeviceError)
        << threads;
  }
}

TEST(EmulatorDeathTest, TheHostCannotTouchDeviceMemory) {
  Context ctx(Device::Cuda(0));
  Tensor x = ctx.Zeros({4}, DType::kF32);
  EXPECT_DEATH({ x.data<float>()[0] = 1; }, "host access to emulated|AddressSanitizer");
}

TEST(Emulator, MemoryThatNobodyWroteIsNan) {
  Context ctx(Device::Cuda(0));
  for (double v : runtime::ToDoubles(ctx.Empty({5}, DType::kBF16))) EXPECT_TRUE(std::isnan(v));
}

TEST(Emulator, SaysWhatUsesMemoryWhenThereIsNoMore) {
  Settings before = settings();
  settings().memory_bytes = 1 << 20;
  Context ctx(Device::Cuda(0));
  Tensor weights = ctx.Empty({512 << 10}, DType::kU8, MemoryCategory::kWeights);
  try {
    ctx.Empty({600 << 10}, DType::kU8, MemoryCategory::kKvCache);
    ADD_FAILURE() << "600 KiB of the 512 that are left";
  } catch (const DeviceError& e) {
    EXPECT_THAT(e.what(), ::testing::AllOf(HasSubstr("cuda:0"), HasSubstr("0.6 MiB for kv_cache"),
                                           HasSubstr("weights 0.5")));
  }
  settings() = before;
}

// A launch takes nothing from one that another thread is about to make.
TEST(Emulator, LaunchesLeaveEachOtherTheirSharedMemory) {
  Context ctx(Device::Cuda(0));
  Tensor x = ctx.Zeros({1}, DType::kF32);
  for (int64_t kib : {200, 60}) {
    Launch(ctx, "write_one", WriteOne, {1, 32, kib * 1024}, x.data<float>());
  }
  cudaFuncAttributes attributes = {};
  cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(WriteOne));
  EXPECT_GE(attributes.maxDynamicSharedSizeBytes, 200 * 1024);
}

// A stream runs behind the host: what it has not come to is not there yet, and what it waits for
// is.
TEST(Emulator, StreamsRunInTheirOwnTime) {
  Settings before = settings();
  settings().lazy_streams = true;
  {
    Context ctx(Device::Cuda(0));
    std::unique_ptr<Stream> other = runtime::MakeStream(ctx.device());
    std::unique_ptr<Event> event = runtime::MakeEvent(ctx.device());
    Tensor x = ctx.Zeros({1}, DType::kF32);
    std::shared_ptr<void> pinned = runtime::MakePinned(4);
    auto* value = static_cast<float*>(pinned.get());
    *value = -1;
    Launch(ctx, "write_one", WriteOne, {1, 32}, x.data<float>());
    event->Record(ctx.stream());
    event->Wait(*other);
    runtime::CopyBytesAsync(value, Device::Cpu(), x.raw(), ctx.device(), 4, *other);
    EXPECT_EQ(*value, -1);
    other->Synchronize();
    EXPECT_EQ(*value, 1);
  }
  settings() = before;
}

}  // namespace
}  // namespace hone::cuda_emulation
