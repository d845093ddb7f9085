// ranks: 2
// emulated: ascending
// The group that MakeDeviceGroup gives, with tensors of the device under test: on the CPU the group
// below itself; with HONE_TEST_DEVICE=cuda NCCL, or staged buffers where ranks share a GPU. Values
// are small integers: exact in any order of additions.
#include "parallel/comm/device_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/context.h"
#include "tests/device.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

using testing::Each;

const std::vector<int> kSizes = {2, 4};

// Ranks under mpirun take the GPUs in turn.
Context MakeContext(const GroupPtr& world) {
  Device device = TestDevice();
  if (!device.is_cpu()) device.index = world->rank() % runtime::CudaDeviceCount();
  return Context(device);
}

Tensor Filled(Context& ctx, int64_t n, DType dtype, double value) {
  Context host;
  Tensor wide = host.Empty({n}, DType::kF64), narrow = host.Empty({n}, dtype);
  std::fill_n(wide.data<double>(), n, value);
  CopyTo(wide, narrow);
  Tensor t = ctx.Empty({n}, dtype);
  CopyTo(narrow, t, &ctx.stream());
  return t;
}

TEST(DeviceGroup, Collectives) {
  OnRanks(kSizes, [](const GroupPtr& world) {
    Context ctx = MakeContext(world);
    GroupPtr group = MakeDeviceGroup(ctx, world);
    const int size = group->size(), rank = group->rank();
    const double ranks = size, sum = ranks * (ranks + 1) / 2;
    EXPECT_EQ(group->device(), ctx.device());
    for (DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
      for (int64_t n : {int64_t{1}, int64_t{5000}}) {
        Tensor t = Filled(ctx, n, dtype, rank + 1);
        group->AllReduce(t)->Wait();
        EXPECT_THAT(runtime::ToDoubles(t), Each(sum));
        Tensor max = Filled(ctx, n, dtype, rank + 1);
        group->AllReduce(max, ReduceOp::kMax)->Wait();
        EXPECT_THAT(runtime::ToDoubles(max), Each(ranks));
        Tensor part = Filled(ctx, n, dtype, 0);
        group->ReduceScatter(Filled(ctx, n * size, dtype, rank + 1), part)->Wait();
        EXPECT_THAT(runtime::ToDoubles(part), Each(sum));
        Tensor root = Filled(ctx, n, dtype, rank);
        group->Broadcast(root, size - 1)->Wait();
        EXPECT_THAT(runtime::ToDoubles(root), Each(ranks - 1));
        Tensor all = Filled(ctx, n * size, dtype, -1);
        group->AllGather(Filled(ctx, n, dtype, rank), all)->Wait();
        for (int r = 0; r < size; ++r) {
          EXPECT_THAT(runtime::ToDoubles(all.Slice(r * n, (r + 1) * n)), Each(r));
        }
      }
    }
  });
}

// Rank r sends r + p rows to rank p.
TEST(DeviceGroup, UnevenRowsOfExperts) {
  OnRanks(kSizes, [](const GroupPtr& world) {
    Context ctx = MakeContext(world);
    GroupPtr group = MakeDeviceGroup(ctx, world);
    std::vector<int64_t> out_rows, in_rows;
    int64_t out = 0, in = 0;
    for (int p = 0; p < group->size(); ++p) {
      out_rows.push_back(group->rank() + p);
      in_rows.push_back(group->rank() + p);
      out += out_rows.back();
      in += in_rows.back();
    }
    Tensor send = Filled(ctx, out * 8, DType::kF32, group->rank()).Reshape({out, 8});
    Tensor recv = Filled(ctx, in * 8, DType::kF32, -1).Reshape({in, 8});
    group->AllToAll(send, out_rows, recv, in_rows)->Wait();
    int64_t at = 0;
    for (int p = 0; p < group->size(); ++p) {
      EXPECT_THAT(runtime::ToDoubles(recv.Slice(at, at + in_rows[p])), Each(p));
      at += in_rows[p];
    }
  });
}

TEST(DeviceGroup, MessagesMatchByTagInBothDirections) {
  OnRanks(kSizes, [](const GroupPtr& world) {
    Context ctx = MakeContext(world);
    GroupPtr group = MakeDeviceGroup(ctx, world)->Split(0, world->rank(), "pp");
    const int next = (group->rank() + 1) % group->size();
    const int previous = (group->rank() + group->size() - 1) % group->size();
    for (int round = 0; round < 3; ++round) {
      for (int tag : {5, 9}) {
        Tensor out = Filled(ctx, 5000, DType::kF32, 10 * tag + round);
        group->Send(out, next, tag);
        group->Send(out, previous, tag + 100);
        runtime::FillZero(out.raw(), ctx.device(), out.bytes(), &ctx.stream());
      }
      for (int tag : {9, 5}) {
        Tensor in = Filled(ctx, 5000, DType::kF32, -1), back = Filled(ctx, 5000, DType::kF32, -1);
        group->Receive(in, previous, tag)->Wait();
        group->Receive(back, next, tag + 100)->Wait();
        EXPECT_THAT(runtime::ToDoubles(in), Each(10 * tag + round));
        EXPECT_THAT(runtime::ToDoubles(back), Each(10 * tag + round));
      }
    }
    group->Barrier();
  });
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
