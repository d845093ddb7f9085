// Copies between two slab indexes of one set of tensors.
#include "runtime/slab.h"

#include <gmock/gmock.h>

#include "runtime/philox.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Slab Box(Shape global, Shape offset, Shape extent) {
  return {"w", std::move(global), std::move(offset), std::move(extent)};
}

// A random box of `global`.
Slab RandomBox(const Shape& global, const RandomStream& random, uint64_t* position) {
  Slab slab = Slab::Whole("w", global);
  for (size_t d = 0; d < global.size(); ++d) {
    int64_t begin = static_cast<int64_t>(random.Below(global[d], (*position)++));
    slab.offset[d] = begin;
    slab.extent[d] = 1 + static_cast<int64_t>(random.Below(global[d] - begin, (*position)++));
  }
  return slab;
}

bool Holds(const Slab& slab, const Shape& position) {
  for (size_t d = 0; d < position.size(); ++d) {
    if (position[d] < slab.offset[d] || position[d] >= slab.offset[d] + slab.extent[d])
      return false;
  }
  return true;
}

TEST(SlabTest, ToStringNamesThePart) {
  EXPECT_EQ(Box({8, 16}, {0, 8}, {4, 8}).ToString(), "w[0:4, 8:16] of [8, 16]");
  EXPECT_TRUE(Slab::Whole("w", {3}).whole());
}

TEST(SlabTest, IntersectAndSubtractPartitionABox) {
  RandomStream random({1});
  uint64_t position = 0;
  for (const Shape& global : {Shape{9}, Shape{5, 7}, Shape{4, 3, 5}}) {
    for (int trial = 0; trial < 100; ++trial) {
      Slab a = RandomBox(global, random, &position), b = RandomBox(global, random, &position);
      Slab both = Intersect(a, b);
      std::vector<Slab> rest = Subtract(a, b);
      ForEachElement(a, [&](const Shape& at, int64_t) {
        int64_t holders = 0;
        for (const Slab& part : rest) holders += Holds(part, at);
        ASSERT_EQ(holders, Holds(b, at) ? 0 : 1);
        ASSERT_EQ(both.size() > 0 && Holds(both, at), Holds(b, at));
      });
      int64_t total = both.size();
      for (const Slab& part : rest) total += part.size();
      ASSERT_EQ(total, a.size());
    }
  }
}

TEST(SlabTest, CopySlabMovesExactlyTheCommonPart) {
  Context ctx;
  RandomStream random({2});
  uint64_t position = 0;
  for (const Shape& global : {Shape{9}, Shape{5, 7}, Shape{4, 3, 5}}) {
    for (int trial = 0; trial < 50; ++trial) {
      SlabTensor src = FilledSlab(ctx, RandomBox(global, random, &position));
      SlabTensor dst = EmptySlab(ctx, RandomBox(global, random, &position), DType::kF64);
      EXPECT_EQ(CopySlab(src, dst), Intersect(src.slab, dst.slab).size());
      std::vector<double> values = ToDoubles(dst.tensor);
      ForEachElement(dst.slab, [&](const Shape& at, int64_t i) {
        ASSERT_EQ(values[i], Holds(src.slab, at) ? ValueAt("w", at) : 0.0);
      });
    }
  }
}

TEST(SlabTest, StridedTensorsOnBothSides) {
  Context ctx;
  Slab whole = Slab::Whole("w", {3, 4, 6});
  SlabTensor filled = FilledSlab(ctx, whole);
  Tensor wide_src = ctx.Zeros({3, 4, 9}, DType::kF32), wide_dst = ctx.Zeros({3, 4, 8}, DType::kF32);
  SlabTensor src{whole, wide_src.Columns(1, 7)}, dst{whole, wide_dst.Columns(2, 8)};
  EXPECT_EQ(CopySlab(filled, src), 72);
  EXPECT_EQ(CopySlab(src, dst), 72);
  ExpectFilled(dst);
  std::vector<float> around = ToVector<float>(wide_dst.Columns(0, 2));
  for (float value : around) EXPECT_EQ(value, 0.0f);
}

TEST(SlabTest, AFlatTensorMayHoldAShapedSlab) {
  Context ctx;
  SlabTensor shaped = FilledSlab(ctx, Box({6, 4}, {2, 0}, {3, 4}));
  SlabTensor flat{shaped.slab, ctx.Zeros({12}, DType::kF32)};
  CopySlab(shaped, flat);
  SlabTensor back = EmptySlab(ctx, Box({6, 4}, {3, 1}, {2, 2}));
  CopySlab(flat, back);
  ExpectFilled(back);
  SlabTensor wrong{shaped.slab, ctx.Zeros({11}, DType::kF32)};
  EXPECT_THAT(MessageOf<ShapeError>([&] { CopySlab(shaped, wrong); }), HasSubstr("w[2:5, 0:4]"));
}

TEST(SlabTest, ScalarsAndEmptySlabs) {
  Context ctx;
  SlabTensor scalar = FilledSlab(ctx, Slab::Whole("s", {}));
  SlabTensor copy = EmptySlab(ctx, Slab::Whole("s", {}));
  EXPECT_EQ(CopySlab(scalar, copy), 1);
  ExpectFilled(copy);
  SlabTensor none = EmptySlab(ctx, Box({4}, {4}, {0}));
  EXPECT_EQ(CopySlab(FilledSlab(ctx, Slab::Whole("w", {4})), none), 0);
  CopySlabs({}, {none});
}

TEST(SlabTest, CopySlabsFillsFromOverlappingSourcesAndNamesGaps) {
  Context ctx;
  SlabIndex src = {FilledSlab(ctx, Box({6, 4}, {0, 0}, {4, 4})),
                   FilledSlab(ctx, Box({6, 4}, {3, 0}, {2, 4})),
                   FilledSlab(ctx, Box({6, 4}, {5, 0}, {1, 3}))};
  SlabTensor dst = EmptySlab(ctx, Box({6, 4}, {1, 0}, {4, 4}));
  CopySlabs(src, {dst});
  ExpectFilled(dst);
  SlabTensor whole = EmptySlab(ctx, Slab::Whole("w", {6, 4}));
  EXPECT_THAT(MessageOf<CheckpointError>([&] { CopySlabs(src, {whole}); }),
              HasSubstr("w[5:6, 3:4] of [6, 4]"));
  SlabTensor other = EmptySlab(ctx, Slab::Whole("w", {6, 5}));
  EXPECT_THAT(MessageOf<CheckpointError>([&] { CopySlabs(src, {other}); }),
              AllOf(HasSubstr("w"), HasSubstr("[6, 4]"), HasSubstr("[6, 5]")));
  SlabTensor absent = EmptySlab(ctx, Slab::Whole("v", {2}));
  EXPECT_THAT(MessageOf<CheckpointError>([&] { CopySlabs(src, {absent}); }), HasSubstr("v[0:2]"));
}

}  // namespace
}  // namespace hone::runtime
