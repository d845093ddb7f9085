// `hone bench train`: whole optimizer steps, and the bound of their matrix products.
#include <nlohmann/json.hpp>

#include "launcher/bench/bench.h"
#include "launcher/bench/bench_learner.h"
#include "launcher/bench/gemm_bound.h"
#include "rl/plan/memory.h"

namespace hone::launcher {
namespace {

Json PeakBytes(const runtime::MemoryUsage& usage) {
  Json peaks;
  for (int i = 0; i < runtime::kMemoryCategoryCount; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    peaks[std::string(runtime::MemoryCategoryName(category))] = usage.peak[i];
  }
  peaks["total"] = usage.peak_total;
  return peaks;
}

// What `hone plan` says of the same step.
int64_t ExpectedPeakBytes(const TrainBenchOptions& options, int ranks) {
  rl::Layout layout;
  layout.mesh.dp = ranks;
  layout.activation_checkpointing = options.activation_checkpointing;
  layout.threads = options.threads;
  rl::StepShape step;
  step.tokens = options.model.sequence * options.model.sequences;
  step.sequences = options.model.sequences;
  step.microbatches = options.packs;
  return EstimateMemory(options.model.config, layout, step)[0].total;
}

}  // namespace

Json BenchTrain(const TrainBenchOptions& options) {
  BenchLearner learner(options.model, options.threads, options.activation_checkpointing);
  learner.ctx().numerics = options.numerics;
  const BenchModel& model = options.model;
  const int64_t ranks = learner.world().size(), tokens = model.sequence * model.sequences;
  std::vector<TokenBatch> packs;
  for (int64_t i = 0; i < options.packs; ++i) {
    packs.push_back(
        RandomPack(model, learner.world().rank() * options.packs + i, options.packs * ranks));
  }
  const GemmCounts gemms = TrainingGemms(model.config, Lengths(model));
  GemmTimer timer(learner.ctx(), gemms);
  learner.Step(packs);  // warms the allocator's cache
  learner.ctx().allocator()->ResetPeaks();
  std::vector<double> seconds;
  for (int64_t i = 0; i < options.rounds; ++i) {
    timer.Round();
    learner.world().Barrier();
    seconds.push_back(SecondsOf([&] { learner.Step(packs); }));
  }
  const auto count = static_cast<double>(tokens * options.packs * ranks);
  const auto rank_packs = static_cast<double>(options.packs);
  const runtime::MemoryUsage usage = learner.ctx().allocator()->Usage();
  Json result = {{"bench", "train"},
                 {"preset", model.preset},
                 {"model", ModelToJson(model.config)},
                 {"ranks", ranks},
                 {"threads", options.threads},
                 {"numerics", runtime::NumericsName(options.numerics)},
                 {"sequence", model.sequence},
                 {"sequences", model.sequences},
                 {"lengths", Lengths(model)},
                 {"packs", options.packs},
                 {"steps", options.rounds},
                 {"tokens_per_second", count / Fastest(seconds)},
                 {"tokens_per_second_median", count / Median(seconds)},
                 {"gemm_bound_fraction", timer.Fastest() * rank_packs / Fastest(seconds)},
                 {"gemm_bound_fraction_median", timer.Median() * rank_packs / Median(seconds)},
                 {"gemm_gflops", Flops(gemms) / timer.Fastest() / 1e9},
                 {"gflops", Flops(gemms) * rank_packs / Fastest(seconds) / 1e9},
                 {"peak_bytes", PeakBytes(usage)}};
  result["peak_bytes"]["expected"] = ExpectedPeakBytes(options, learner.world().size());
  return result;
}

}  // namespace hone::launcher
