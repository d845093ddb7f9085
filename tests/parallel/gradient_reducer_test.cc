// ranks: 2 4
#include "parallel/gradient_reducer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "parallel/tied_replicas.h"
#include "runtime/error.h"
#include "tests/parallel/parameters.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

TEST(ShardRows, CoversAllRowsInOrderFirstRanksLonger) {
  for (int64_t rows : {0, 1, 3, 4, 7, 100}) {
    for (int size : {1, 2, 3, 4, 8}) {
      int64_t next = 0;
      for (int r = 0; r < size; ++r) {
        RowRange range = ShardRows(rows, r, size);
        EXPECT_EQ(range.begin, next);
        EXPECT_GE(range.size(), rows / size);
        EXPECT_LE(range.size(), ShardRows(rows, 0, size).size());
        EXPECT_LE(ShardRows(rows, 0, size).size() - range.size(), 1);
        next = range.end;
      }
      EXPECT_EQ(next, rows);
    }
  }
}

const std::vector<ParamShape> kShapes = {
    {.name = "head", .shape = {37, 5}},
    {.name = "norm", .shape = {9}},
    {.name = "experts", .shape = {8, 3, 4}, .expert = true},
    {.name = "few_rows", .shape = {3, 11}},
    {.name = "frozen", .shape = {6, 2}, .trainable = false},
    {.name = "one", .shape = {1, 6}},
    {.name = "embed", .shape = {64, 3}},
};

// What dp rank `rank` adds to the gradient of an element.
double Contribution(const std::string& name, int64_t element, int rank) {
  return Scrambled(name, element, 100 + rank) * std::pow(10.0, (element + rank) % 5);
}

// This rank's shards of the summed gradients, by name. Also checks them against the sum over
// replicas in rank order, to the bit: a float sum, whose order shows.
std::map<std::string, std::vector<double>> ReduceAndCheck(const GroupPtr& world, MeshConfig config,
                                                          GradientReducer::Options options,
                                                          int steps = 2) {
  Context ctx;
  Mesh mesh(config, world);
  std::vector<std::unique_ptr<Parameter>> owned;
  for (ParamShape shape : kShapes) {
    shape.name += std::to_string(mesh.pp_index());  // of one name they would be replicas
    owned.push_back(
        MakeParameter(ctx, shape, mesh.ep_index(), config.ep, DType::kF32, DType::kF32));
  }
  GradientReducer reducer(ctx, mesh, Pointers(owned), options);
  std::map<std::string, std::vector<double>> shards;
  for (int step = 0; step < steps; ++step) {
    for (auto& p : owned) {
      if (p->spec.trainable) {
        FillGradient(*p, [&](int64_t e) {
          return Contribution(p->spec.name, e + 1000 * step, mesh.dp_index());
        });
      }
      if (p->spec.name[0] != 'o') reducer.MarkReady(p.get());  // Finish takes what is left
    }
    reducer.Finish();
    for (auto& p : owned) {
      if (!p->spec.trainable) continue;
      const Tensor& shard = reducer.Shard(p.get());
      RowRange rows = reducer.Rows(p.get());
      bool expert = p->spec.reduce == ReduceGroup::kExpert;
      const GroupPtr& group = expert ? mesh.expert_data() : mesh.dp();
      RowRange expected_rows = ShardRows(p->spec.slab.extent[0], group->rank(), group->size());
      EXPECT_EQ(rows.begin, expected_rows.begin);
      EXPECT_EQ(rows.end, expected_rows.end);
      Shape shape = p->spec.slab.extent;
      shape[0] = rows.size();
      EXPECT_EQ(shard.shape(), shape) << p->spec.name;
      int64_t row = p->gradient.size() / p->gradient.dim(0);
      std::vector<double> values = ToDoubles(shard), expected;
      for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
        int64_t element = FirstElement(*p) + rows.begin * row + i + 1000 * step;
        float sum = 0;
        bool first = true;
        for (int r = 0; r < config.dp; ++r) {
          if (expert && r % config.ep != mesh.ep_index()) continue;
          float term = static_cast<float>(Contribution(p->spec.name, element, r));
          sum = std::exchange(first, false) ? term : sum + term;
        }
        expected.push_back(static_cast<double>(sum));
      }
      EXPECT_EQ(values, expected) << p->spec.name << " step " << step;
      shards[p->spec.name] = values;
    }
  }
  return shards;
}

TEST(GradientReducer, ShardsHoldTheSumInRankOrder) {
  for (MeshConfig config : {MeshConfig{1, 1, 1},
                            {1, 2, 1},
                            {1, 2, 2},
                            {1, 4, 1},
                            {1, 4, 2},
                            {1, 4, 4},
                            {2, 2, 2},
                            {1, 8, 2}}) {
    SCOPED_TRACE(config.ToString());
    if (MpiWorld() != nullptr && config.ranks() != MpiWorld()->size()) continue;
    OnRanks({config.ranks()}, [&](const GroupPtr& world) {
      for (int64_t bucket_bytes : {1, 300, 1 << 20}) {
        auto with = ReduceAndCheck(world, config, {.bucket_bytes = bucket_bytes, .overlap = true});
        auto without =
            ReduceAndCheck(world, config, {.bucket_bytes = bucket_bytes, .overlap = false});
        EXPECT_EQ(with, without);
      }
    });
  }
}

TEST(GradientReducer, NoPaddingAndNoBufferOnOneRank) {
  Context ctx;
  Mesh mesh({}, MakeSingleGroup());
  auto p = MakeParameter(ctx, kShapes[0], 0, 1, DType::kF32, DType::kF32);
  GradientReducer reducer(ctx, mesh, {p.get()}, {});
  reducer.Finish();
  EXPECT_EQ(reducer.Shard(p.get()).raw(), p->gradient.raw());
  int category = static_cast<int>(MemoryCategory::kCommunication);
  EXPECT_EQ(ctx.allocator()->Usage().peak[category], 0);
}

TEST(GradientReducer, BucketsUnderWayAreBounded) {
  RunThreadRanks(2, [](const GroupPtr& world) {
    Context ctx;
    Mesh mesh({1, 2, 1}, world);
    std::vector<std::unique_ptr<Parameter>> owned;
    constexpr int64_t kParameter = 4096 * 4;
    for (int i = 0; i < 40; ++i) {
      owned.push_back(MakeParameter(ctx, {.name = std::to_string(i), .shape = {64, 64}}, 0, 1,
                                    DType::kF32, DType::kF32));
    }
    GradientReducer reducer(ctx, mesh, Pointers(owned), {.bucket_bytes = kParameter});
    for (auto& p : owned) reducer.MarkReady(p.get());
    reducer.Finish();
    int category = static_cast<int>(MemoryCategory::kCommunication);
    // The shards, half of all, and at most four buckets.
    EXPECT_LE(ctx.allocator()->Usage().peak[category], 20 * kParameter + 4 * kParameter);
  });
}

TEST(GradientReducer, MisuseIsNamed) {
  Context ctx;
  Mesh mesh({}, MakeSingleGroup());
  auto p = MakeParameter(ctx, kShapes[0], 0, 1, DType::kF32, DType::kF32);
  auto frozen = MakeParameter(ctx, kShapes[4], 0, 1, DType::kF32, DType::kF32);
  auto stranger = MakeParameter(ctx, kShapes[1], 0, 1, DType::kF32, DType::kF32);
  GradientReducer reducer(ctx, mesh, {p.get(), frozen.get()}, {});
  reducer.MarkReady(frozen.get());
  reducer.MarkReady(p.get());
  EXPECT_THROW(reducer.MarkReady(p.get()), Error);
  EXPECT_THROW(reducer.MarkReady(stranger.get()), Error);
  EXPECT_THROW(reducer.Shard(frozen.get()), Error);
}

// An embedding on the first pipeline rank; on the last one the head tied to it, by two names in one
// storage; layers between. Every holder gets the sum of both gradients over dp.
TEST(GradientReducer, ReplicasOnSeveralPipelineRanksGetTheSum) {
  for (MeshConfig config : {MeshConfig{2, 1, 1}, {4, 1, 1}, {2, 2, 1}}) {
    SCOPED_TRACE(config.ToString());
    if (MpiWorld() != nullptr && config.ranks() != MpiWorld()->size()) continue;
    OnRanks({config.ranks()}, [&](const GroupPtr& world) {
      Context ctx;
      Mesh mesh(config, world);
      bool first = mesh.pp_index() == 0, last = mesh.pp_index() == config.pp - 1;
      std::vector<std::unique_ptr<Parameter>> owned;
      auto add = [&](const ParamShape& shape) {
        owned.push_back(MakeParameter(ctx, shape, 0, 1, DType::kF32, DType::kF32));
        return owned.back().get();
      };
      if (last) {
        Parameter* head = add({.name = "head", .shape = {7, 3}, .tied_to = "embed"});
        Parameter* copy = add({.name = "embed", .shape = {7, 3}});
        copy->value = head->value;
        copy->gradient = head->gradient;
      }
      Parameter* layer = add({.name = fmt::format("layer{}", mesh.pp_index()), .shape = {5, 2}});
      if (first) add({.name = "embed", .shape = {7, 3}});
      GradientReducer reducer(ctx, mesh, Pointers(owned), {});
      for (int step = 0; step < 2; ++step) {
        auto term = [&](int64_t e, int pp, int dp) {
          return static_cast<float>(Scrambled("tied", e, 10 * pp + dp + 1) *
                                    std::pow(10.0, (e + pp + dp + step) % 4));
        };
        for (auto& p : owned) {
          FillGradient(*p, [&](int64_t e) { return term(e, mesh.pp_index(), mesh.dp_index()); });
        }
        for (auto& p : owned) reducer.MarkReady(p.get());
        reducer.Finish();
        for (auto& p : owned) {
          std::vector<double> shard = ToDoubles(reducer.Shard(p.get()));
          int64_t row = p->gradient.dim(1), begin = reducer.Rows(p.get()).begin * row;
          for (size_t i = 0; i < shard.size(); ++i) {
            int64_t e = begin + static_cast<int64_t>(i);
            float sum = 0;
            for (int d = 0; d < config.dp; ++d) {
              float replica = p.get() == layer ? term(e, mesh.pp_index(), d)
                                               : term(e, 0, d) + term(e, config.pp - 1, d);
              sum = d == 0 ? replica : sum + replica;
            }
            EXPECT_EQ(shard[i], static_cast<double>(sum)) << p->spec.name << " " << e;
          }
        }
      }
    });
  }
}

TEST(TiedReplicas, ThatDifferAreRefusedByName) {
  OnRanks({2}, [](const GroupPtr& world) {
    Context ctx;
    Mesh mesh({2, 1, 1}, world);
    auto p = MakeParameter(ctx, {.name = "embed", .shape = {4 + world->rank(), 2}}, 0, 1,
                           DType::kF32, DType::kF32);
    try {
      TiedReplicas replicas(mesh, {p.get()});
      ADD_FAILURE() << "accepted";
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(),
                  testing::HasSubstr("embed is [4, 2] f32 on pipeline rank 0 but [5"));
    }
  });
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
