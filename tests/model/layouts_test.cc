// ranks: 2 4 8
// timeout: 300
// Whole models in every layout and schedule against one rank, over twenty optimizer steps.
#include <gtest/gtest.h>

#include <sstream>
#include <tuple>

#include "parallel/train_engine.h"
#include "tests/model/stage_testing.h"
#include "tests/parallel/ranks.h"

namespace hone::model {
namespace {

using parallel::GroupPtr;
using parallel::MeshConfig;
using parallel::MpiWorld;
using parallel::PipelineShape;
using parallel::ScheduleKind;
using parallel::TrainEngine;

constexpr int kSteps = 20, kGlobalBatches = 16;

struct Layout {
  MeshConfig mesh;
  ScheduleKind schedule = ScheduleKind::k1F1B;
  DType dtype = DType::kF64;
  bool overlap = true, checkpointing = false;  // must not change a bit
  std::string ToString() const { return mesh.ToString() + " " + parallel::ScheduleName(schedule); }
};

// Eight layers, so that four ranks can hold two chunks each.
ModelConfig Deep(ModelConfig config) {
  config.num_hidden_layers = 8;
  return config;
}

// Of a few tokens each; one in five is empty.
TokenBatch BatchOf(const ModelConfig& config, int step, int index) {
  if (index % 5 == 3) return RandomBatch(config, {}, 0);
  return RandomBatch(config, {1 + index % 4, 3}, static_cast<uint64_t>(step * 100 + index));
}

// The experts that the tokens of a batch chose, by (step, batch, MoE layer): [T, K].
using Routing = std::map<std::tuple<int, int, int>, std::vector<int32_t>>;

struct RunResult {
  Routing routing;
  std::vector<double> loss, norm;
  std::map<std::string, std::vector<double>> values;  // of whole tensors
  bool operator==(const RunResult&) const = default;
};

// Puts together what the ranks hold; where two hold the same element they must agree to the bit.
std::map<std::string, std::vector<double>> Gather(TrainEngine& engine, const GroupPtr& world) {
  std::string mine;
  for (const Parameter* p : engine.Parameters()) {
    const auto& slab = p->spec.slab;
    const std::vector<double> values = ToDoubles(p->value);
    const int64_t row = slab.size() / std::max<int64_t>(1, slab.extent[0]);
    mine += p->spec.name + " " + std::to_string(slab.offset[0] * row) + " " +
            std::to_string(runtime::NumElements(slab.global_shape)) + " " +
            std::to_string(values.size()) + "\n";
    mine.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
  }
  std::map<std::string, std::vector<double>> whole;
  std::map<std::string, std::vector<bool>> known;
  for (const std::string& bytes : world->AllGatherBytes(mine)) {
    std::istringstream in(bytes);
    std::string name;
    size_t first = 0, size = 0, count = 0;
    while (in >> name >> first >> size >> count && in.get() == '\n') {
      std::vector<double> values(count);
      in.read(reinterpret_cast<char*>(values.data()),
              static_cast<std::streamsize>(count * sizeof(double)));
      whole[name].resize(size);
      known[name].resize(size);
      for (size_t i = 0; i < count; ++i) {
        if (known[name][first + i]) {
          EXPECT_EQ(whole[name][first + i], values[i]) << "replicas of " << name;
        }
        whole[name][first + i] = values[i];
        known[name][first + i] = true;
      }
    }
  }
  return whole;
}

// What a stage recorded of its microbatches; the prediction module's layer is the last.
void TakeRouting(TransformerStage& stage, int step, int first_batch, int count, Routing* routing) {
  const ModelConfig& config = stage.config();
  const auto k = static_cast<size_t>(config.num_experts_per_tok);
  const int first = static_cast<int>(
      std::max<int64_t>(stage.options().first_layer - config.first_k_dense_replace, 0));
  for (int i = 0; i < count; ++i) {
    const std::vector<int32_t> flat = stage.TakeRouting(i);
    const auto tokens = static_cast<size_t>(BatchOf(config, step, first_batch + i).tokens());
    const size_t layers = tokens == 0 ? 0 : flat.size() / (tokens * k);
    for (size_t at = 0; at < flat.size(); ++at) {
      const int layer = first + static_cast<int>(at / k % layers);
      (*routing)[{step, first_batch + i, layer}].push_back(flat[at]);
    }
  }
}

// [T, L, K] of one batch.
std::vector<int32_t> ReplayOf(const Routing& routing, int step, int batch, int64_t k) {
  std::vector<const std::vector<int32_t>*> layers;
  for (int l = 0; routing.contains({step, batch, l}); ++l) {
    layers.push_back(&routing.at({step, batch, l}));
  }
  std::vector<int32_t> flat;
  for (size_t at = 0; !layers.empty() && at < layers[0]->size(); at += static_cast<size_t>(k)) {
    for (const auto* layer : layers) {
      const auto begin = layer->begin() + static_cast<std::ptrdiff_t>(at);
      flat.insert(flat.end(), begin, begin + k);
    }
  }
  return flat;
}

Routing GatherRouting(const Routing& mine, const GroupPtr& world) {
  std::ostringstream out;
  for (const auto& [key, experts] : mine) {
    const auto& [step, batch, layer] = key;
    out << step << " " << batch << " " << layer << " " << experts.size();
    for (int32_t e : experts) out << " " << e;
    out << "\n";
  }
  Routing all;
  for (const std::string& text : world->AllGatherBytes(out.str())) {
    std::istringstream in(text);
    int step = 0, batch = 0, layer = 0;
    size_t size = 0;
    while (in >> step >> batch >> layer >> size) {
      std::vector<int32_t>& experts = all[{step, batch, layer}];
      experts.resize(size);
      for (int32_t& e : experts) in >> e;
    }
  }
  return all;
}

TrainEngine::Options EngineOptions(const Layout& layout) {
  TrainEngine::Options options;
  options.pipeline = {layout.schedule, layout.schedule == ScheduleKind::kInterleaved ? 2 : 1};
  options.optimizer.moments = layout.dtype;
  options.optimizer.clip = 0.3;
  options.reducer.bucket_bytes = 4096;
  options.reducer.overlap = layout.overlap;
  return options;
}

// `replay`: the experts to use; null: the router chooses.
RunResult Train(const ModelConfig& config, const Layout& layout, const GroupPtr& world,
                const Routing* replay = nullptr) {
  Context ctx;
  parallel::Mesh mesh(layout.mesh, world);
  const TrainEngine::Options options = EngineOptions(layout);
  const int count = kGlobalBatches / layout.mesh.dp, first = mesh.dp_index() * count;
  const PipelineShape shape{layout.schedule, layout.mesh.pp, options.pipeline.chunks_per_rank(),
                            count};
  StageOptions base = WholeModel(config, layout.dtype);
  base.activation_checkpointing = layout.checkpointing;
  base.record_routing = config.is_moe();
  const auto split = SplitLayers(config, shape.stages(), base);
  std::vector<std::unique_ptr<TransformerStage>> stages;
  std::vector<parallel::PipelineStage*> chunks;
  for (int c = 0; c < shape.chunks; ++c) {
    stages.push_back(std::make_unique<TransformerStage>(
        ctx, config, split[shape.StageOf(mesh.pp_index(), c)], mesh.ep()));
    FillStage(ctx, *stages.back(), 5, 0.2);
    chunks.push_back(stages.back().get());
  }
  TrainEngine engine(ctx, mesh, chunks, options);
  engine.SelfCheck("layouts");
  CrossEntropyLoss loss;
  RunResult result;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<TokenBatch> batches;
    for (int i = first; i < first + count; ++i) {
      batches.push_back(BatchOf(config, step, i));
      if (!replay) continue;
      batches.back().routing_TLK = ReplayOf(*replay, step, i, config.num_experts_per_tok);
    }
    const auto done = engine.Step(batches, loss, layout.dtype == DType::kF64 ? 0.01 : 0.001);
    EXPECT_FALSE(done.skipped);
    result.loss.push_back(done.loss);
    result.norm.push_back(done.gradient_norm);
    for (auto& stage : stages) {
      if (config.is_moe()) TakeRouting(*stage, step, first, count, &result.routing);
    }
  }
  result.routing = GatherRouting(result.routing, world);
  result.values = Gather(engine, world);
  return result;
}

RunResult TrainAnywhere(const ModelConfig& config, const Layout& layout,
                        const Routing* replay = nullptr) {
  if (MpiWorld() != nullptr) return Train(config, layout, MpiWorld(), replay);
  RunResult result;
  parallel::RunThreadRanks(layout.mesh.ranks(), [&](GroupPtr world) {
    RunResult mine = Train(config, layout, world, replay);
    if (world->rank() == 0) result = std::move(mine);
  });
  return result;
}

std::vector<Layout> Layouts(const ModelConfig& config) {
  std::vector<MeshConfig> meshes = {{1, 2, 1}, {1, 4, 1}, {2, 1, 1}, {4, 1, 1}, {2, 2, 1}};
  if (config.is_moe()) {
    meshes.insert(meshes.end(), {{1, 2, 2}, {1, 4, 4}, {2, 2, 2}, {2, 4, 4}});
  }
  std::vector<Layout> layouts;
  for (const MeshConfig& mesh : meshes) {
    if (MpiWorld() != nullptr && mesh.ranks() != MpiWorld()->size()) continue;
    layouts.push_back({mesh, ScheduleKind::k1F1B});
    if (mesh.pp == 1) continue;
    for (ScheduleKind kind : {ScheduleKind::kGPipe, ScheduleKind::kInterleaved, ScheduleKind::kZbH1,
                              ScheduleKind::kDualPipeV}) {
      layouts.push_back({mesh, kind});
    }
  }
  return layouts;
}

// max|a − b| / max|b|, the worst over losses, norms and tensors.
double WorstDifference(const RunResult& got, const RunResult& want, std::string* where) {
  double worst = 0;
  auto compare = [&](const std::vector<double>& a, const std::vector<double>& b,
                     const std::string& name) {
    ASSERT_EQ(a.size(), b.size()) << name;
    double difference = 0, scale = 1e-30;
    for (size_t i = 0; i < a.size(); ++i) {
      difference = std::max(difference, std::abs(a[i] - b[i]));
      scale = std::max(scale, std::abs(b[i]));
      EXPECT_TRUE(std::isfinite(a[i])) << name;
    }
    if (difference / scale > worst) *where = name;
    worst = std::max(worst, difference / scale);
  };
  compare(got.loss, want.loss, "loss");
  compare(got.norm, want.norm, "gradient norm");
  EXPECT_EQ(got.values.size(), want.values.size());
  for (const auto& [name, values] : want.values) compare(got.values.at(name), values, name);
  return worst;
}

class LayoutsTest : public testing::TestWithParam<std::pair<std::string, ModelConfig>> {};
INSTANTIATE_TEST_SUITE_P(Models, LayoutsTest,
                         testing::Values(std::pair{std::string("dense"), Deep(TinyDense())},
                                         std::pair{std::string("tied"), Deep(TinyTied())},
                                         std::pair{std::string("v3"), Deep(TinyV3())}),
                         [](const auto& info) { return info.param.first; });

RunResult OneRank(const ModelConfig& config, DType dtype) {
  RunResult result;
  parallel::RunThreadRanks(1, [&](GroupPtr world) {
    result = Train(config, {{1, 1, 1}, ScheduleKind::kGPipe, dtype}, world);
  });
  return result;
}

TEST_P(LayoutsTest, EveryLayoutAndScheduleEqualsOneRank) {
  const ModelConfig& config = GetParam().second;
  const RunResult want = OneRank(config, DType::kF64);
  EXPECT_EQ(want.routing.empty(), !config.is_moe());
  for (const Layout& layout : Layouts(config)) {
    std::string where;
    const RunResult got = TrainAnywhere(config, layout);
    const double worst = WorstDifference(got, want, &where);
    EXPECT_LE(worst, 1e-10) << layout.ToString() << " at " << where;
    EXPECT_TRUE(got.routing == want.routing) << layout.ToString();
  }
}

TEST_P(LayoutsTest, InSinglePrecisionTheyStayNearOneRank) {
  if (MpiWorld() != nullptr) GTEST_SKIP() << "threads give the same bits";
  const ModelConfig& config = GetParam().second;
  const RunResult want = OneRank(config, DType::kF32);
  for (Layout layout : Layouts(config)) {
    layout.dtype = DType::kF32;
    std::string where;
    const Routing* replay = config.is_moe() ? &want.routing : nullptr;
    const double worst = WorstDifference(TrainAnywhere(config, layout, replay), want, &where);
    EXPECT_LE(worst, 1e-5) << layout.ToString() << " at " << where;
  }
}

// On threads or under MPI, with reduction overlapped or not, activations kept or computed again.
TEST_P(LayoutsTest, WhatShouldNotMatterChangesNoBit) {
  const ModelConfig& config = GetParam().second;
  for (Layout layout : Layouts(config)) {
    const bool chosen = layout.mesh.ranks() == (MpiWorld() == nullptr ? 4 : MpiWorld()->size()) &&
                        (layout.mesh.pp == 1 || layout.schedule == ScheduleKind::kDualPipeV);
    if (!chosen) continue;
    layout.dtype = DType::kF32;
    const RunResult want = TrainAnywhere(config, layout);
    EXPECT_EQ(TrainAnywhere(config, layout), want) << layout.ToString() << " a second time";
    if (MpiWorld() != nullptr && MpiWorld()->rank() == 0) {
      RunResult on_threads;
      parallel::RunThreadRanks(layout.mesh.ranks(), [&](GroupPtr world) {
        RunResult mine = Train(config, layout, world);
        if (world->rank() == 0) on_threads = std::move(mine);
      });
      EXPECT_EQ(on_threads, want) << layout.ToString();
    }
    layout.overlap = false;
    layout.checkpointing = true;
    EXPECT_EQ(TrainAnywhere(config, layout), want) << layout.ToString();
  }
}

}  // namespace
}  // namespace hone::model

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
