// Tensors, dtypes, the allocator and the context that makes them.
#include "runtime/tensor.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <thread>

#include "runtime/philox.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Tensor Counting(Context& ctx, Shape shape) {
  Tensor t = ctx.Empty(std::move(shape), DType::kF32);
  for (int64_t i = 0; i < t.size(); ++i) t.data<float>()[i] = static_cast<float>(i);
  return t;
}

TEST(TensorTest, SliceAndColumnsAreViews) {
  Context ctx;
  Tensor t = Counting(ctx, {4, 3});
  Tensor middle = t.Slice(1, 3).Columns(1, 3);
  EXPECT_THAT(ToVector<float>(middle), ElementsAre(4, 5, 7, 8));
  EXPECT_FALSE(middle.contiguous());
  middle.row<float>(1)[0] = -1;
  EXPECT_EQ(t.data<float>()[7], -1);
  Tensor cube = Counting(ctx, {2, 3, 4});
  EXPECT_THAT(ToVector<float>(cube.Slice(1, 2).Columns(3, 4)), ElementsAre(15, 19, 23));
  EXPECT_THAT(ToVector<float>(Counting(ctx, {5}).Slice(2, 4)), ElementsAre(2, 3));
  EXPECT_EQ(cube.Slice(1, 1).size(), 0);
}

TEST(TensorTest, AViewKeepsItsStorageAlive) {
  Context ctx;
  Tensor view;
  {
    Tensor t = Counting(ctx, {100, 3});
    view = t.Slice(99, 100);
  }
  EXPECT_EQ(ctx.allocator()->Usage().live_total, 1200);
  EXPECT_THAT(ToVector<float>(view), ElementsAre(297, 298, 299));
  view = Tensor();
  EXPECT_EQ(ctx.allocator()->Usage().live_total, 0);
}

TEST(TensorTest, ReshapeOfStridedKeepsTheLastDim) {
  Context ctx;
  Tensor columns = Counting(ctx, {4, 6}).Columns(0, 2);
  EXPECT_EQ(ToVector<float>(columns.Reshape({2, 2, 2})), ToVector<float>(columns));
  EXPECT_THAT(MessageOf<ShapeError>([&] { columns.Reshape({8}); }), HasSubstr("[4, 2] to [8]"));
  EXPECT_EQ(Counting(ctx, {4, 6}).Reshape({24}).ndim(), 1);
}

TEST(TensorTest, ErrorsNameShapes) {
  Context ctx;
  Tensor t = ctx.Zeros({2, 3}, DType::kF32);
  EXPECT_THAT(MessageOf<ShapeError>([&] { t.Slice(1, 3); }),
              AllOf(HasSubstr("[1, 3)"), HasSubstr("[2, 3]")));
  EXPECT_THAT(MessageOf<ShapeError>([&] { t.Reshape({7}); }), HasSubstr("[2, 3] to [7]"));
  EXPECT_THAT(MessageOf<ShapeError>([&] { t.data<double>(); }), HasSubstr("f64 but holds f32"));
  EXPECT_THAT(MessageOf<ShapeError>([&] { t.dim(2); }), HasSubstr("dim 2"));
  EXPECT_EQ(t.dim(-1), 3);
  EXPECT_THAT(MessageOf<ShapeError>([&] {
                CopyTo(t, ctx.Zeros({3, 2}, DType::kF32));
              }),
              HasSubstr("[2, 3] to shape [3, 2]"));
}

TEST(TensorTest, CopyConvertsBetweenFloats) {
  Context ctx;
  Tensor wide = ctx.Zeros({3, 5}, DType::kF64);
  Tensor view = wide.Columns(1, 4);
  CopyTo(Counting(ctx, {3, 3}), view);
  EXPECT_THAT(ToDoubles(wide), ElementsAre(0, 0, 1, 2, 0, 0, 3, 4, 5, 0, 0, 6, 7, 8, 0));
  Tensor narrow = ctx.Empty({3, 3}, DType::kBF16);
  CopyTo(view, narrow);
  EXPECT_THAT(ToDoubles(narrow), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8));
  EXPECT_THROW(CopyTo(narrow, ctx.Empty({3, 3}, DType::kI32)), ShapeError);
}

// Round to nearest, ties to even, against the definition in double.
TEST(DTypeTest, BF16Rounding) {
  RandomStream random({11});
  for (uint64_t i = 0; i < 200000; ++i) {
    uint32_t bits = static_cast<uint32_t>(random.Bits(i));
    if (i % 4 == 0) bits = (bits & 0xffff0000u) | 0x8000u;  // ties
    float value;
    std::memcpy(&value, &bits, sizeof value);
    BF16 rounded(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(rounded)));
      continue;
    }
    if (std::isinf(value)) continue;
    BF16 below, above;  // in magnitude
    below.bits = static_cast<uint16_t>(bits >> 16);
    above.bits = static_cast<uint16_t>(below.bits + 1);
    double down = std::abs(static_cast<double>(value) - static_cast<double>(float(below)));
    // The step above the largest finite value is that of its binade, though its end reads as
    // infinite.
    double step = std::abs(static_cast<double>(float(below))) > 0
                      ? std::ldexp(1.0, std::max(-126, std::ilogb(float(below))) - 7)
                      : std::ldexp(1.0, -133);
    double up = step - down;
    bool to_above = up < down || (up == down && (below.bits & 1) == 1);
    ASSERT_EQ(rounded.bits, to_above ? above.bits : below.bits) << value;
  }
}

TEST(DTypeTest, BF16EdgeCases) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(BF16(1.0f).bits, 0x3f80);
  EXPECT_EQ(BF16(-0.0f).bits, 0x8000);
  EXPECT_EQ(BF16(kInf).bits, 0x7f80);
  EXPECT_EQ(BF16(-kInf).bits, 0xff80);
  EXPECT_EQ(BF16(std::numeric_limits<float>::max()).bits, 0x7f80);
  uint32_t signalling = 0x7f800001;  // whose payload the upper half does not hold
  float value;
  std::memcpy(&value, &signalling, sizeof value);
  EXPECT_TRUE(std::isnan(static_cast<float>(BF16(value))));
}

TEST(DTypeTest, NamesAndSizes) {
  for (DType d : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8,
                  DType::kF8E4M3}) {
    EXPECT_EQ(DTypeFromName(DTypeName(d)), d);
  }
  EXPECT_EQ(DTypeSize(DType::kBF16), 2);
  EXPECT_EQ(DTypeSize(DType::kI64), 8);
  EXPECT_THAT(MessageOf<ConfigError>([] { DTypeFromName("f16"); }), HasSubstr("'f16'"));
}

TEST(AllocatorTest, CountsLiveAndPeakByCategory) {
  auto allocator = MakeAllocator(Device::Cpu());
  auto index = [](MemoryCategory c) { return static_cast<int>(c); };
  void* weights = allocator->Allocate(1000, MemoryCategory::kWeights);
  void* activations = allocator->Allocate(3000, MemoryCategory::kActivations);
  allocator->Free(activations, 3000, MemoryCategory::kActivations);
  void* again = allocator->Allocate(500, MemoryCategory::kActivations);
  MemoryUsage usage = allocator->Usage();
  EXPECT_EQ(usage.live[index(MemoryCategory::kWeights)], 1000);
  EXPECT_EQ(usage.live[index(MemoryCategory::kActivations)], 500);
  EXPECT_EQ(usage.peak[index(MemoryCategory::kActivations)], 3000);
  EXPECT_EQ(usage.live_total, 1500);
  EXPECT_EQ(usage.peak_total, 4000);
  EXPECT_GE(usage.reserved, 4000);
  allocator->ResetPeaks();
  EXPECT_EQ(allocator->Usage().peak_total, 1500);
  EXPECT_EQ(allocator->Usage().peak[index(MemoryCategory::kActivations)], 500);
  allocator->Free(again, 500, MemoryCategory::kActivations);
  allocator->Free(weights, 1000, MemoryCategory::kWeights);
  EXPECT_EQ(allocator->Usage().live_total, 0);
  allocator->ReleaseCached();
  EXPECT_EQ(allocator->Usage().reserved, 0);
}

TEST(AllocatorTest, ASteadyStateAsksForNothing) {
  auto allocator = MakeAllocator(Device::Cpu());
  int64_t reserved = 0;
  for (int step = 0; step < 5; ++step) {
    std::vector<std::pair<void*, int64_t>> blocks;
    for (int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{257}, int64_t{5000}, int64_t{1} << 20}) {
      void* ptr = allocator->Allocate(bytes, MemoryCategory::kOther);
      ASSERT_NE(ptr, nullptr);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(ptr) % 64, 0u);
      std::memset(ptr, 0xab, bytes);
      blocks.emplace_back(ptr, bytes);
    }
    for (auto [ptr, bytes] : blocks) allocator->Free(ptr, bytes, MemoryCategory::kOther);
    if (step > 0) {
      EXPECT_EQ(allocator->Usage().reserved, reserved);
    }
    reserved = allocator->Usage().reserved;
  }
}

TEST(AllocatorTest, ThreadsMayShareIt) {
  auto allocator = MakeAllocator(Device::Cpu());
  std::vector<std::thread> threads;
  for (int r = 0; r < 4; ++r) {
    threads.emplace_back([&, r] {
      for (int i = 0; i < 2000; ++i) {
        int64_t bytes = 64 + (i * 37 + r) % 4096;
        auto* ptr = static_cast<unsigned char*>(allocator->Allocate(bytes, MemoryCategory::kOther));
        ptr[0] = ptr[bytes - 1] = static_cast<unsigned char>(r);
        std::this_thread::yield();
        EXPECT_EQ(ptr[0], r);
        EXPECT_EQ(ptr[bytes - 1], r);
        allocator->Free(ptr, bytes, MemoryCategory::kOther);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(allocator->Usage().live_total, 0);
}

TEST(ContextTest, TensorsOutliveTheContext) {
  Tensor t;
  {
    Context ctx;
    t = ctx.Zeros({3}, DType::kF64, MemoryCategory::kKvCache);
    Tensor copy = ctx.Clone(t);
    copy.data<double>()[0] = 1;
  }
  EXPECT_THAT(ToDoubles(t), ElementsAre(0, 0, 0));
}

TEST(ContextTest, WithoutCudaItSaysSo) {
  if (CudaDeviceCount() > 0) GTEST_SKIP() << "this machine has CUDA";
  EXPECT_THAT(MessageOf<DeviceError>([] { Context ctx(Device::Cuda(1)); }), HasSubstr("cuda:1"));
}

}  // namespace
}  // namespace hone::runtime
