// Device tensors through host buffers: what arrives in them is what the host group made. On a
// machine without a GPU the device is the CPU, and every tensor is staged.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/comm/device_group.h"
#include "runtime/context.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

using testing::ElementsAre;

Tensor Vector(Context& ctx, const std::vector<float>& values) {
  Context host;
  Tensor from = host.Empty({static_cast<int64_t>(values.size())}, DType::kF32);
  std::copy(values.begin(), values.end(), from.data<float>());
  Tensor to = ctx.Empty(from.shape(), DType::kF32);
  CopyTo(from, to, &ctx.stream());
  return to;
}

// body(ctx, staged group, the group below).
void OnStagedRanks(int size, const std::function<void(Context&, GroupPtr, GroupPtr)>& body) {
  RunThreadRanks(size, [&](const GroupPtr& control) {
    Context ctx;
    body(ctx, MakeStagedGroup(ctx, control), control);
  });
}

TEST(StagedGroup, CollectivesComeBackToTheirTensors) {
  OnStagedRanks(3, [](Context& ctx, const GroupPtr& group, const GroupPtr&) {
    float r = static_cast<float>(group->rank());
    Tensor sum = Vector(ctx, {r, 1});
    group->AllReduce(sum)->Wait();
    EXPECT_THAT(ToDoubles(sum), ElementsAre(3, 3));

    Tensor max = Vector(ctx, {-r});
    group->AllReduce(max, ReduceOp::kMax)->Wait();
    EXPECT_THAT(ToDoubles(max), ElementsAre(0));

    Tensor own = Vector(ctx, {-1});
    group->ReduceScatter(Vector(ctx, {1, 10, 100}), own)->Wait();
    EXPECT_THAT(ToDoubles(own), ElementsAre(std::vector<double>{3, 30, 300}[group->rank()]));

    Tensor all = Vector(ctx, {-1, -1, -1});
    group->AllGather(Vector(ctx, {r}), all)->Wait();
    EXPECT_THAT(ToDoubles(all), ElementsAre(0, 1, 2));

    Tensor root = Vector(ctx, {r});
    group->Broadcast(root, 1)->Wait();
    EXPECT_THAT(ToDoubles(root), ElementsAre(1));

    Tensor arrived = Vector(ctx, {-1, -1, -1});
    group->AllToAll(Vector(ctx, {10 * r, 10 * r + 1, 10 * r + 2}), {1, 1, 1}, arrived, {1, 1, 1})
        ->Wait();
    EXPECT_THAT(ToDoubles(arrived), ElementsAre(r, 10 + r, 20 + r));
  });
}

TEST(StagedGroup, TheResultIsNotInPlaceBeforeWait) {
  OnStagedRanks(2, [](Context& ctx, const GroupPtr& group, const GroupPtr&) {
    Tensor sum = Vector(ctx, {1});
    WorkPtr work = group->AllReduce(sum);
    group->Barrier();
    EXPECT_THAT(ToDoubles(sum), ElementsAre(1)) << "not staged";
    work->Wait();
    EXPECT_THAT(ToDoubles(sum), ElementsAre(2));
    work->Wait();
    EXPECT_THAT(ToDoubles(sum), ElementsAre(2));
  });
}

TEST(StagedGroup, MessagesAndPartsOfTheGroup) {
  OnStagedRanks(4, [](Context& ctx, const GroupPtr& world, const GroupPtr&) {
    GroupPtr group = world->Split(world->rank() / 2, world->rank(), "pp");
    int peer = 1 - group->rank();
    Tensor out = Vector(ctx, {static_cast<float>(world->rank())}), in = Vector(ctx, {-1});
    group->Send(out, peer, 7)->Wait();
    group->Receive(in, peer, 7)->Wait();
    EXPECT_THAT(ToDoubles(in), ElementsAre(world->rank() / 2 * 2 + peer));
    EXPECT_EQ(group->name(), "pp");
    EXPECT_EQ(group->device(), ctx.device());
  });
}

TEST(DeviceGroup, OnTheCpuItIsTheGroupItself) {
  RunThreadRanks(2, [](const GroupPtr& control) {
    Context ctx;
    std::string why;
    EXPECT_EQ(MakeDeviceGroup(ctx, control, {}, &why), control);
    EXPECT_EQ(why, "tensors are on the host");
  });
}

}  // namespace
}  // namespace hone::parallel
