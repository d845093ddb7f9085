// ranks: 4
// Whole optimizer steps of the toy model in every layout, on thread ranks and under mpirun.
#include "parallel/train_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <sstream>

#include "tests/parallel/forwarding_group.h"
#include "tests/parallel/ranks.h"
#include "tests/parallel/toy_stage.h"

namespace hone::parallel {
namespace {

using ::testing::HasSubstr;
using testing::Pointers;
using testing::ToyBatch;
using testing::ToyChunks;
using testing::ToyLoss;

constexpr int kSteps = 4, kGlobalBatches = 16;

struct Layout {
  ScheduleKind schedule = ScheduleKind::k1F1B;
  int pp = 1, dp = 1;
  bool overlap = true, report = true, tied = false;
  int ranks() const { return pp * dp; }
  std::string ToString() const {
    return ScheduleName(schedule) + " pp" + std::to_string(pp) + " dp" + std::to_string(dp) +
           (overlap ? "" : " no overlap") + (report ? "" : " by chunk") + (tied ? " tied" : "");
  }
};

// What a run leaves behind, the same on every rank.
struct RunResult {
  std::vector<double> loss, norm, metrics, largest;
  std::map<std::string, std::vector<double>> values;
  bool operator==(const RunResult&) const = default;
};

TrainEngine::Options EngineOptions(const Layout& layout) {
  TrainEngine::Options options;
  options.pipeline.schedule = layout.schedule;
  options.pipeline.chunks = layout.schedule == ScheduleKind::kInterleaved ? 2 : 1;
  options.optimizer.clip = 0.5;
  options.optimizer.moments = DType::kF64;
  options.reducer.overlap = layout.overlap;
  options.reducer.bucket_bytes = 300;
  return options;
}

PipelineShape ShapeOf(const Layout& layout) {
  const auto options = EngineOptions(layout);
  return {layout.schedule, layout.pp, options.pipeline.chunks_per_rank(),
          kGlobalBatches / layout.dp};
}

std::vector<TokenBatch> LocalBatches(int step, const Mesh& mesh) {
  const int count = kGlobalBatches / mesh.config().dp;
  std::vector<TokenBatch> batches;
  for (int i = 0; i < count; ++i) batches.push_back(ToyBatch(step, mesh.dp_index() * count + i));
  return batches;
}

// Everything a test needs on one rank.
struct Rank {
  Rank(const Layout& layout, const GroupPtr& world)
      : mesh({layout.pp, layout.dp, 1}, world),
        chunks(ToyChunks(ctx, ShapeOf(layout), mesh.pp_index(), layout.report, layout.tied)),
        engine(ctx, mesh, Pointers(chunks), EngineOptions(layout)) {}
  Context ctx;
  Mesh mesh;
  std::vector<std::unique_ptr<testing::ToyStage>> chunks;
  TrainEngine engine;
};

// All ranks' parameters by name; replicas must agree to the bit.
std::map<std::string, std::vector<double>> GatherValues(Rank& rank) {
  std::string mine;
  for (const Parameter* p : rank.engine.Parameters()) {
    const auto values = runtime::ToDoubles(p->value);
    mine += (p->spec.tied_to.empty() ? p->spec.name : p->spec.tied_to) + " " +
            std::to_string(values.size()) + "\n";
    mine.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
  }
  std::map<std::string, std::vector<double>> all;
  for (const std::string& bytes : rank.mesh.world()->AllGatherBytes(mine)) {
    std::istringstream in(bytes);
    std::string name;
    size_t size = 0;
    while (in >> name >> size && in.get() == '\n') {
      std::vector<double> values(size);
      in.read(reinterpret_cast<char*>(values.data()),
              static_cast<std::streamsize>(size * sizeof(double)));
      auto [it, is_new] = all.emplace(name, values);
      EXPECT_EQ(it->second, values) << "replicas of " << name;
    }
  }
  return all;
}

RunResult Train(const Layout& layout, const GroupPtr& world) {
  Rank rank(layout, world);
  RunResult result;
  for (int step = 0; step < kSteps; ++step) {
    const auto done = rank.engine.Step(LocalBatches(step, rank.mesh), ToyLoss(), 0.02);
    EXPECT_FALSE(done.skipped);
    result.loss.push_back(done.loss);
    result.norm.push_back(done.gradient_norm);
    result.metrics.push_back(done.metrics.at("tokens"));
    result.metrics.push_back(done.metrics.at("squares"));
    result.largest.push_back(done.metrics.at("largest_square"));
    EXPECT_NEAR(done.metrics.at("auxiliary"),
                done.metrics.at("tokens") * testing::kToyAuxiliary * testing::kToyLayers, 1e-10);
  }
  result.values = GatherValues(rank);
  return result;
}

// Gradients are not there between steps; nothing else is different.
TEST(TrainEngine, GradientsMayGoBetweenSteps) {
  for (Layout layout : {Layout{}, Layout{.dp = 2}, Layout{.pp = 2, .tied = true},
                        Layout{.schedule = ScheduleKind::kDualPipeV, .pp = 2, .tied = true}}) {
    SCOPED_TRACE(layout.ToString());
    OnRanks({layout.ranks()}, [&](const GroupPtr& world) {
      Rank kept(layout, world), released(layout, world);
      auto held = [&](MemoryCategory category) {
        return released.ctx.allocator()->Usage().live[static_cast<size_t>(category)];
      };
      const int64_t gradients = held(MemoryCategory::kGradients);
      EXPECT_GT(gradients, 0);
      for (int step = 0; step < kSteps; ++step) {
        const auto want = kept.engine.Step(LocalBatches(step, kept.mesh), ToyLoss(), 0.02);
        const auto got = released.engine.Step(LocalBatches(step, released.mesh), ToyLoss(), 0.02);
        EXPECT_EQ(got.loss, want.loss);
        EXPECT_EQ(got.gradient_norm, want.gradient_norm);
        EXPECT_EQ(held(MemoryCategory::kGradients), gradients);
        released.engine.ReleaseGradients();
        released.engine.ReleaseGradients();
        EXPECT_EQ(held(MemoryCategory::kGradients), 0);
        EXPECT_EQ(held(MemoryCategory::kCommunication), 0);
      }
      EXPECT_EQ(GatherValues(released), GatherValues(kept));
      released.engine.RestoreGradients();
      EXPECT_EQ(held(MemoryCategory::kGradients), gradients);
    });
  }
}

// Counts the groups made of it and of its parts.
class CountingGroup : public ForwardingGroup {
 public:
  CountingGroup(GroupPtr real, int* splits) : ForwardingGroup(std::move(real)), splits_(splits) {}
  GroupPtr Split(int color, int key, const std::string& name) override {
    ++*splits_;
    return std::make_shared<CountingGroup>(real()->Split(color, key, name), splits_);
  }

 private:
  int* splits_;
};

// MPI has only so many.
TEST(TrainEngine, MakesNoGroupsForGradientsThatComeBackNorForAnotherEngine) {
  RunThreadRanks(2, [](const GroupPtr& world) {
    int splits = 0;
    Layout layout{.pp = 2, .tied = true};
    Rank rank(layout, std::make_shared<CountingGroup>(world, &splits));
    const int before = splits;
    EXPECT_GT(before, 0);
    rank.engine.ReleaseGradients();
    rank.engine.RestoreGradients();
    TrainEngine another(rank.ctx, rank.mesh, Pointers(rank.chunks), EngineOptions(layout));
    EXPECT_EQ(splits, before);
  });
}

RunResult TrainOnThreads(const Layout& layout) {
  RunResult result;
  RunThreadRanks(layout.ranks(), [&](GroupPtr world) {
    RunResult mine = Train(layout, world);
    const bool is_first = world->rank() == 0;
    if (is_first) result = mine;
    world->Barrier();
    EXPECT_EQ(mine, result) << "rank " << world->rank();
  });
  return result;
}

void ExpectNear(const RunResult& got, const RunResult& want, double bound) {
  for (int step = 0; step < kSteps; ++step) {
    EXPECT_NEAR(got.loss[step], want.loss[step], bound);
    EXPECT_NEAR(got.norm[step], want.norm[step], bound);
    EXPECT_NEAR(got.metrics[2 * step], want.metrics[2 * step], bound);
    EXPECT_NEAR(got.metrics[2 * step + 1], want.metrics[2 * step + 1], bound);
    EXPECT_NEAR(got.largest[step], want.largest[step], bound);
  }
  double counted = 0;
  for (double tokens : {0, 1, 2, 3}) counted += want.metrics[2 * static_cast<size_t>(tokens)];
  for (const auto& [name, values] : got.values) {
    if (name.ends_with("counter")) {
      EXPECT_EQ(values[0], counted) << name;
      continue;
    }
    ASSERT_EQ(want.values.count(name), 1u) << name;
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(values[i], want.values.at(name)[i], bound) << name << "[" << i << "]";
    }
  }
}

std::vector<Layout> AllLayouts() {
  std::vector<Layout> layouts;
  for (ScheduleKind kind : {ScheduleKind::kGPipe, ScheduleKind::k1F1B, ScheduleKind::kInterleaved,
                            ScheduleKind::kZbH1, ScheduleKind::kDualPipeV}) {
    for (int pp : {1, 2, 4}) {
      for (int dp : {1, 2}) {
        for (bool tied : {false, true}) {
          layouts.push_back({kind, pp, dp, true, true, tied});
        }
      }
    }
  }
  return layouts;
}

// Plain loops: one stage, one microbatch after the other, AdamW as in Loshchilov & Hutter with bias
// correction, clipped by the global norm as PyTorch does.
RunResult TrainByHand(bool tied) {
  Context ctx;
  testing::ToyStage stage(ctx, 0, testing::kToyLayers, false, tied);
  ToyLoss loss;
  std::map<Parameter*, std::vector<double>> m, v;
  RunResult result;
  for (int step = 0; step < kSteps; ++step) {
    double loss_sum = 0, squares = 0, largest = 0, tokens = 0, norm = 0;
    stage.BeginStep(false);
    for (Parameter* p : stage.Parameters()) {
      for (int64_t i = 0; i < (p->spec.buffer ? 0 : p->gradient.size()); ++i) {
        p->gradient.data<double>()[i] = 0;
      }
    }
    for (int i = 0; i < kGlobalBatches; ++i) {
      stage.Forward(ctx, i, ToyBatch(step, i), {}, &loss, true);
      stage.Backward(ctx, i, {});
      const auto outcome = stage.TakeOutcome(i);
      loss_sum += outcome.loss;
      tokens += outcome.metrics.at("tokens");
      squares += outcome.metrics.at("squares");
      largest = std::max(largest, outcome.metrics.at("largest_square"));
    }
    for (Parameter* p : stage.Parameters()) {
      for (int64_t i = 0; i < (p->spec.buffer ? 0 : p->gradient.size()); ++i) {
        norm += std::pow(p->gradient.data<double>()[i], 2);
      }
    }
    norm = std::sqrt(norm);
    for (Parameter* p : stage.Parameters()) {
      if (p->spec.buffer) continue;
      m[p].resize(static_cast<size_t>(p->value.size()));
      v[p].resize(static_cast<size_t>(p->value.size()));
      for (size_t i = 0; i < m[p].size(); ++i) {
        const double g = p->gradient.data<double>()[i] * std::min(1.0, 0.5 / (norm + 1e-6));
        double& w = p->value.data<double>()[i];
        m[p][i] = 0.9 * m[p][i] + 0.1 * g;
        v[p][i] = 0.95 * v[p][i] + 0.05 * g * g;
        const double m_hat = m[p][i] / (1 - std::pow(0.9, step + 1));
        const double v_hat = v[p][i] / (1 - std::pow(0.95, step + 1));
        w -= 0.02 * (m_hat / (std::sqrt(v_hat) + 1e-8) + 0.1 * w);
      }
    }
    result.loss.push_back(loss_sum + tokens * testing::kToyAuxiliary * testing::kToyLayers);
    result.norm.push_back(norm);
    result.metrics.push_back(tokens);
    result.metrics.push_back(squares);
    result.largest.push_back(largest);
  }
  for (Parameter* p : stage.Parameters()) {
    if (!p->spec.buffer) result.values[p->spec.name] = runtime::ToDoubles(p->value);
  }
  return result;
}

TEST(TrainEngine, EveryLayoutEqualsPlainLoops) {
  const RunResult untied = TrainByHand(false), tied = TrainByHand(true);
  int clipped = 0;
  for (double norm : untied.norm) clipped += norm > 0.5;
  EXPECT_GT(clipped, 0);
  for (const Layout& layout : AllLayouts()) {
    if (MpiWorld() != nullptr && layout.ranks() != MpiWorld()->size()) continue;
    SCOPED_TRACE(layout.ToString());
    const RunResult got =
        MpiWorld() != nullptr ? Train(layout, MpiWorld()) : TrainOnThreads(layout);
    ExpectNear(got, layout.tied ? tied : untied, 1e-10);
  }
}

// Threads or MPI, the first or the second time, overlap on or off, reported by layer or by chunk.
TEST(TrainEngine, OneLayoutGivesTheSameBits) {
  for (Layout layout : AllLayouts()) {
    const int ranks = MpiWorld() != nullptr ? MpiWorld()->size() : 4;
    if (layout.ranks() != ranks) continue;
    SCOPED_TRACE(layout.ToString());
    const RunResult want = TrainOnThreads(layout);
    EXPECT_EQ(want, MpiWorld() != nullptr ? Train(layout, MpiWorld()) : TrainOnThreads(layout));
    layout.overlap = false;
    EXPECT_EQ(want, MpiWorld() != nullptr ? Train(layout, MpiWorld()) : TrainOnThreads(layout));
    layout.overlap = true;
    layout.report = false;
    EXPECT_EQ(want, MpiWorld() != nullptr ? Train(layout, MpiWorld()) : TrainOnThreads(layout));
  }
}

TEST(TrainEngine, EvaluateChangesNothingAndGivesEveryBatchsOutcome) {
  OnRanks({1, 4}, [](GroupPtr world) {
    for (ScheduleKind kind : {ScheduleKind::k1F1B, ScheduleKind::kDualPipeV}) {
      const int ranks = world->size();
      Rank rank({kind, ranks == 4 ? 2 : 1, ranks == 4 ? 2 : 1}, world);
      const auto before = GatherValues(rank);
      // Three batches: fewer than DualPipe-V's schedule asks for when training.
      std::vector<TokenBatch> batches;
      for (int i = 0; i < 3; ++i) batches.push_back(ToyBatch(9, rank.mesh.dp_index() + i));
      const auto outcomes = rank.engine.Evaluate(batches, ToyLoss(), true);
      EXPECT_EQ(GatherValues(rank), before);
      const bool has_last = kind == ScheduleKind::kDualPipeV
                                ? rank.mesh.pp_index() == 0
                                : rank.mesh.pp_index() == rank.mesh.config().pp - 1;
      ASSERT_EQ(outcomes.size(), has_last ? batches.size() : 0u);
      testing::ToyStage whole(rank.ctx, 0, testing::kToyLayers);
      ToyLoss loss;
      whole.BeginStep(true);
      for (size_t i = 0; i < outcomes.size(); ++i) {
        whole.Forward(rank.ctx, static_cast<int>(i), batches[i], {}, &loss, false);
        const auto want = whole.TakeOutcome(static_cast<int>(i));
        EXPECT_EQ(outcomes[i].loss, want.loss);
        EXPECT_EQ(runtime::ToDoubles(outcomes[i].head.logp_T),
                  runtime::ToDoubles(want.head.logp_T));
      }
    }
  });
}

class NanLoss : public ToyLoss {
 public:
  Result Evaluate(Context& ctx, const TokenBatch& batch, const HeadOutput& out) const override {
    Result result = ToyLoss::Evaluate(ctx, batch, out);
    if (batch.tokens() > 2) {
      result.gradient.dlogp_T.data<double>()[0] = std::numeric_limits<double>::quiet_NaN();
    }
    return result;
  }
};

TEST(TrainEngine, AGradientThatIsNotFiniteChangesNothingOnAnyRank) {
  OnRanks({1, 4}, [](GroupPtr world) {
    const int two = world->size() == 4 ? 2 : 1;
    Rank rank({ScheduleKind::kZbH1, two, two}, world);
    rank.engine.Step(LocalBatches(0, rank.mesh), ToyLoss(), 0.02);
    const auto before = GatherValues(rank);
    const auto bad = rank.engine.Step(LocalBatches(1, rank.mesh), NanLoss(), 0.02);
    EXPECT_TRUE(bad.skipped);
    EXPECT_EQ(GatherValues(rank), before);
    EXPECT_FALSE(rank.engine.Step(LocalBatches(1, rank.mesh), ToyLoss(), 0.02).skipped);
    EXPECT_NE(GatherValues(rank), before);
  });
}

TEST(TrainEngine, RefusesMicrobatchesThatTheScheduleCannotTake) {
  OnRanks({4}, [](GroupPtr world) {
    Rank rank({ScheduleKind::kDualPipeV, 4, 1}, world);
    EXPECT_THROW(rank.engine.Step({ToyBatch(0, 0)}, ToyLoss(), 0.02), ConfigError);
  });
}

// Forwards everything but the sums, of which it returns this rank's part.
class DeafGroup : public ForwardingGroup {
 public:
  explicit DeafGroup(GroupPtr real) : ForwardingGroup(std::move(real)) {}
  WorkPtr AllReduce(const Tensor& t, ReduceOp op) override {
    return real()->AllReduce(Context().Clone(t), op);
  }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output) override {
    CopyTo(input.Slice(rank() * output.size(), (rank() + 1) * output.size()), output);
    return real()->ReduceScatter(input, Context().Clone(output));
  }
  GroupPtr Split(int color, int key, const std::string& name) override {
    GroupPtr group = real()->Split(color, key, name);
    return group == nullptr ? nullptr : std::make_shared<DeafGroup>(group);
  }
};

std::string SelfCheckError(TrainEngine& engine, const std::string& digest = "d") {
  try {
    engine.SelfCheck(digest);
  } catch (const CommError& e) {
    return e.what();
  }
  return "";
}

TEST(TrainEngine, SelfCheckPassesAndLeavesTheRunAsItWas) {
  OnRanks({1, 2, 4}, [](GroupPtr world) {
    for (bool tied : {false, true}) {
      const int pp = world->size() == 4 ? 2 : 1, dp = world->size() / pp;
      Layout layout{ScheduleKind::k1F1B, pp, dp};
      layout.tied = tied;
      const RunResult want = Train(layout, world);
      Rank rank(layout, world);
      EXPECT_EQ(SelfCheckError(rank.engine), "");
      for (int step = 0; step < kSteps; ++step) {
        rank.engine.Step(LocalBatches(step, rank.mesh), ToyLoss(), 0.02);
      }
      EXPECT_EQ(GatherValues(rank), want.values);
    }
  });
}

TEST(TrainEngine, SelfCheckNamesTheRankWithAnotherConfigOrOtherWeights) {
  OnRanks({4}, [](GroupPtr world) {
    Rank rank({ScheduleKind::k1F1B, 2, 2}, world);
    const std::string config = SelfCheckError(rank.engine, world->rank() == 3 ? "b" : "a");
    EXPECT_THAT(config, HasSubstr("rank 3 has config digest 'b'"));
    // Ranks 0 and 1 hold the first stage.
    for (Parameter* p : rank.engine.Parameters()) {
      if (world->rank() == 1 && p->spec.name == "layers.2.weight")
        p->value.data<double>()[7] += 1e-12;
    }
    EXPECT_THAT(SelfCheckError(rank.engine),
                HasSubstr("rank 1 holds other values of layers.2.weight"));
  });
}

TEST(TrainEngine, SelfCheckFindsGradientsThatAreNotSummed) {
  OnRanks({2, 4}, [](GroupPtr world) {
    const int pp = world->size() / 2;
    Rank deaf({ScheduleKind::k1F1B, pp, 2}, std::make_shared<DeafGroup>(world));
    EXPECT_THAT(SelfCheckError(deaf.engine),
                HasSubstr("[self check] rank 0: row 0 of the gradient"));
    Rank hearing({ScheduleKind::k1F1B, pp, 2}, std::make_shared<ForwardingGroup>(world));
    EXPECT_EQ(SelfCheckError(hearing.engine), "");
  });
}

PipelineConfig ReadPipeline(const std::string& yaml) {
  ConfigReader reader(Config::FromString(yaml));
  PipelineConfig config;
  config.Read(reader);
  reader.Finish();
  return config;
}

TEST(PipelineConfig, ReadsEveryScheduleAndRefusesTheRest) {
  for (size_t i = 0; i < ScheduleNames().size(); ++i) {
    const auto config = ReadPipeline("schedule: '" + ScheduleNames()[i] + "'");
    EXPECT_EQ(config.schedule, static_cast<ScheduleKind>(i));
    EXPECT_EQ(config.chunks_per_rank(), ScheduleNames()[i] == "dualpipe_v" ? 2 : 1);
  }
  EXPECT_EQ(ReadPipeline("{schedule: interleaved, chunks: 3}").chunks_per_rank(), 3);
  EXPECT_THROW(ReadPipeline("schedule: 1f1c"), ConfigError);
  EXPECT_THROW(ReadPipeline("{schedule: zb_h1, chunks: 2}"), ConfigError);
  EXPECT_THROW(ReadPipeline("{schedule: interleaved, chunks: 0}"), ConfigError);
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
