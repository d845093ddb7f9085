// A snapshot of device tensors while the device goes on, with streams that run only when waited
// for.
#include "runtime/host_snapshot.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "runtime/context.h"

namespace hone::runtime {
namespace {

class HostSnapshotTest : public testing::Test {
 protected:
  HostSnapshotTest() { cuda_emulation::settings().lazy_streams = true; }
  ~HostSnapshotTest() override { cuda_emulation::settings() = before_; }

  Tensor Filled(const std::vector<float>& values) {
    Tensor t = ctx_.Empty({static_cast<int64_t>(values.size())}, DType::kF32);
    Set(t, values);
    return t;
  }
  void Set(const Tensor& t, const std::vector<float>& values) {
    CopyBytes(t.raw(), t.device(), values.data(), Device::Cpu(), t.bytes(), &ctx_.stream());
  }

  cuda_emulation::Settings before_ = cuda_emulation::settings();
  Context ctx_{Device::Cuda(0)};
  HostSnapshot snapshot_;
};

TEST_F(HostSnapshotTest, TakesWhatTheStreamHasWrittenAndNotWhatItWritesLater) {
  Tensor a = Filled({1, 2, 3}), b = Filled({4, 5});
  std::vector<Tensor> copies = snapshot_.Take({a, b}, &ctx_.stream());
  snapshot_.Hold(ctx_.stream());
  Set(a, {7, 7, 7});
  b = Tensor();  // freed behind the copy, and perhaps handed out again
  Tensor c = Filled({8, 8});
  ctx_.stream().Synchronize();  // the copies come first
  snapshot_.Wait();
  EXPECT_EQ(ToVector<float>(copies[0]), (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(ToVector<float>(copies[1]), (std::vector<float>{4, 5}));
  EXPECT_EQ(ToVector<float>(a), (std::vector<float>{7, 7, 7}));
}

TEST_F(HostSnapshotTest, TheHostDoesNotWait) {
  Tensor a = Filled({1, 2, 3});
  cudaEvent_t written;
  ASSERT_EQ(cudaEventCreateWithFlags(&written, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(written, static_cast<cudaStream_t>(ctx_.stream().handle())),
            cudaSuccess);
  std::vector<Tensor> copies = snapshot_.Take({a}, &ctx_.stream());
  snapshot_.Hold(ctx_.stream());
  EXPECT_EQ(cudaEventQuery(written), cudaErrorNotReady);
  snapshot_.Wait();
  EXPECT_EQ(cudaEventQuery(written), cudaSuccess);
  EXPECT_EQ(ToVector<float>(copies[0]), (std::vector<float>{1, 2, 3}));
  cudaEventDestroy(written);
}

TEST_F(HostSnapshotTest, MixesHostDeviceAndStridedTensors) {
  Context cpu;
  Tensor host = cpu.Empty({2}, DType::kF32), wide = Filled({1, 2, 3, 4, 5, 6}).Reshape({2, 3});
  host.data<float>()[0] = 8;
  host.data<float>()[1] = 9;
  for (Stream* stream : {&ctx_.stream(), static_cast<Stream*>(nullptr)}) {
    std::vector<Tensor> copies = snapshot_.Take({host, wide.Columns(1, 3), wide}, stream);
    EXPECT_EQ(ToVector<float>(copies[0]), (std::vector<float>{8, 9}));
    EXPECT_EQ(ToVector<float>(copies[1]), (std::vector<float>{2, 3, 5, 6}));
    snapshot_.Wait();
    EXPECT_EQ(ToVector<float>(copies[2]), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  }
}

}  // namespace
}  // namespace hone::runtime
