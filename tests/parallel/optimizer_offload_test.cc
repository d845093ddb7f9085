// emulated: ascending
// Optimizer states in host memory against the same states on the device: the bits of values and
// states, what the device holds, and checkpoints that change from one to the other. On the CPU
// offload changes nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>

#include "parallel/comm/device_group.h"
#include "parallel/sharded_optimizer.h"
#include "parallel/state_stream.h"
#include "runtime/error.h"
#include "tests/device.h"
#include "tests/parallel/parameters.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

const std::vector<ParamShape> kShapes = {
    {.name = "head", .shape = {37, 5}},
    {.name = "norm", .shape = {9}, .decay = false},
    {.name = "experts", .shape = {8, 3, 4}, .expert = true},
    {.name = "one_row", .shape = {1, 11}},
    {.name = "embed", .shape = {64, 3}},
};

struct Setting {
  DType storage, moments;
  AdamWConfig::Offload offload = AdamWConfig::Offload::kNone;
  int64_t piece_bytes = 16 << 20;
};

Tensor ToDevice(Context& ctx, const Tensor& host, MemoryCategory category) {
  Tensor t = ctx.Empty(host.shape(), host.dtype(), category);
  CopyTo(host, t, &ctx.stream());
  return t;
}

struct Rank {
  Rank(const MeshConfig& config, const GroupPtr& world, const Setting& setting)
      : ctx(TestDevice()),
        mesh(config, ctx.device().is_cpu() ? world : MakeStagedGroup(ctx, world)) {
    Context host;
    const DType master = AccumulatorOf(setting.storage);
    for (const ParamShape& shape : kShapes) {
      owned.push_back(
          MakeParameter(host, shape, mesh.ep_index(), config.ep, setting.storage, master));
      Parameter& p = *owned.back();
      p.value = ToDevice(ctx, p.value, MemoryCategory::kWeights);
      p.gradient = ToDevice(ctx, p.gradient, MemoryCategory::kGradients);
    }
    reducer = std::make_unique<GradientReducer>(ctx, mesh, Pointers(owned),
                                                GradientReducer::Options{.bucket_bytes = 2000});
    AdamWConfig adamw{.moments = setting.moments, .offload = setting.offload};
    adamw.offload_piece_bytes = setting.piece_bytes;
    optimizer = std::make_unique<ShardedOptimizer>(ctx, mesh, Pointers(owned), adamw);
  }
  static DType AccumulatorOf(DType t) { return t == DType::kF64 ? t : DType::kF32; }

  void Step(int step) {
    Context host;
    for (auto& p : owned) {
      Tensor gradient = host.Empty(p->gradient.shape(), p->gradient.dtype());
      for (int64_t i = 0; i < gradient.size(); ++i) {
        StoreAs(gradient, i,
                Scrambled(p->spec.name, FirstElement(*p) + i, 10 * step + mesh.dp_index()));
      }
      CopyTo(gradient, p->gradient, &ctx.stream());
      reducer->MarkReady(p.get());
    }
    reducer->Finish();
    EXPECT_FALSE(optimizer->Step(*reducer, 0.01).skipped);
  }

  // Every bit of values and states, by name and place.
  std::map<std::string, std::vector<double>> Bits() {
    std::map<std::string, std::vector<double>> bits;
    for (const SlabTensor& s : optimizer->State()) bits[s.slab.ToString()] = ToDoubles(s.tensor);
    for (auto& p : owned) bits[p->spec.slab.ToString()] = ToDoubles(p->value);
    return bits;
  }
  runtime::MemoryUsage Usage() { return ctx.allocator()->Usage(); }

  Context ctx;
  Mesh mesh;
  std::vector<std::unique_ptr<Parameter>> owned;
  std::unique_ptr<GradientReducer> reducer;
  std::unique_ptr<ShardedOptimizer> optimizer;
};

constexpr auto kHost = AdamWConfig::Offload::kHost;
constexpr auto kOptimizer = static_cast<size_t>(MemoryCategory::kOptimizer);

class OptimizerOffload : public testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, OptimizerOffload,
                         testing::Values(Setting{DType::kF32, DType::kF32},
                                         Setting{DType::kBF16, DType::kF32},
                                         Setting{DType::kBF16, DType::kBF16},
                                         Setting{DType::kF64, DType::kF32}));

TEST_P(OptimizerOffload, GivesTheSameBitsHoweverPiecesCut) {
  for (const MeshConfig& layout : {MeshConfig{1, 1, 1}, {1, 2, 1}, {1, 2, 2}}) {
    SCOPED_TRACE(layout.ToString());
    OnRanks({layout.ranks()}, [&](const GroupPtr& world) {
      Rank plain(layout, world, GetParam());
      for (int step = 1; step <= 3; ++step) plain.Step(step);
      const auto want = plain.Bits();
      for (int64_t piece : {1, 300, 4000, 1 << 20}) {
        Setting setting = GetParam();
        setting.offload = kHost;
        setting.piece_bytes = piece;
        Rank rank(layout, world, setting);
        for (int step = 1; step <= 3; ++step) rank.Step(step);
        EXPECT_EQ(rank.Bits(), want) << "pieces of " << piece << " bytes";
      }
    });
  }
}

TEST_P(OptimizerOffload, HoldsPiecesOnTheDeviceAndOnlyInAStep) {
  OnRanks({1}, [&](const GroupPtr& world) {
    Setting setting = GetParam();
    setting.offload = kHost;
    setting.piece_bytes = 600;
    Rank rank({1, 1, 1}, world, setting);
    rank.Step(1);
    const runtime::MemoryUsage usage = rank.Usage();
    if (rank.ctx.device().is_cpu()) {
      EXPECT_EQ(usage.live[kOptimizer], usage.peak[kOptimizer]);
      return;
    }
    EXPECT_EQ(usage.live[kOptimizer], 0);
    EXPECT_GT(usage.peak[kOptimizer], 0);
    // Three arrays of a piece are aligned to 256 bytes each.
    EXPECT_LE(usage.peak[kOptimizer], StateStream::kPieces * (600 + 3 * 256));
    for (const SlabTensor& s : rank.optimizer->State()) EXPECT_TRUE(s.tensor.device().is_cpu());
  });
}

// Steps 1 and 2 with one of the two, 3 and 4 with the other, through what a checkpoint holds.
TEST_P(OptimizerOffload, TakesTurnsWithoutOffload) {
  OnRanks({2}, [&](const GroupPtr& world) {
    const MeshConfig layout{1, 2, 1};
    Rank whole(layout, world, GetParam());
    for (int step = 1; step <= 4; ++step) whole.Step(step);
    for (auto [first, second] : {std::pair{kHost, AdamWConfig::Offload::kNone},
                                 std::pair{AdamWConfig::Offload::kNone, kHost}}) {
      Setting before = GetParam(), after = GetParam();
      before.offload = first;
      after.offload = second;
      before.piece_bytes = after.piece_bytes = 512;
      Rank from(layout, world, before), to(layout, world, after);
      for (int step = 1; step <= 2; ++step) from.Step(step);
      to.Step(7);  // there is something to be overwritten
      const SlabIndex source = from.optimizer->State(), target = to.optimizer->State();
      ASSERT_EQ(source.size(), target.size());
      for (size_t i = 0; i < source.size(); ++i) CopyTo(source[i].tensor, target[i].tensor);
      to.optimizer->set_step(2);
      to.optimizer->PublishMasters();
      for (int step = 3; step <= 4; ++step) to.Step(step);
      EXPECT_EQ(to.Bits(), whole.Bits());
    }
  });
}

TEST_P(OptimizerOffload, ResetBeginsAnew) {
  OnRanks({1}, [&](const GroupPtr& world) {
    Setting setting = GetParam();
    setting.offload = kHost;
    setting.piece_bytes = 512;
    Rank fresh({1, 1, 1}, world, setting), used({1, 1, 1}, world, setting);
    for (int step = 1; step <= 2; ++step) used.Step(step);
    for (size_t i = 0; i < used.owned.size(); ++i) {
      CopyTo(fresh.owned[i]->value, used.owned[i]->value, &used.ctx.stream());
    }
    used.optimizer->Reset();
    fresh.Step(1);
    used.Step(1);
    EXPECT_EQ(used.Bits(), fresh.Bits());
  });
}

TEST(OptimizerOffloadConfig, IsReadFromConfig) {
  auto read = [](const std::string& text) {
    Config file = Config::FromString(text);
    ConfigReader reader(file);
    AdamWConfig config;
    config.Read(reader);
    reader.Finish();
    return config.offload;
  };
  EXPECT_EQ(read("{moments: bf16}"), AdamWConfig::Offload::kNone);
  EXPECT_EQ(read("{offload: host}"), kHost);
  EXPECT_THROW(read("{offload: disk}"), ConfigError);
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
