// `hone bench train`: whole optimizer steps, and the bound of their matrix products.
#include <nlohmann/json.hpp>

#include "launcher/bench/bench.h"
#include "launcher/bench/bench_learner.h"
#include "launcher/bench/gemm_bound.h"

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

// The formula of docs/benchmarks.md, for dense f32 models without activation checkpointing.
int64_t ExpectedPeakBytes(const model::ModelConfig& c, int64_t tokens, int64_t ranks) {
  const int64_t parameters = c.ParameterCount(false), d = c.hidden_size;
  const int64_t q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  const int64_t layer = 3 * d + 2 * q + 2 * kv + c.num_attention_heads + 2 * c.intermediate_size;
  // The last block's backward, with the records of all blocks still there, holds the most.
  const int64_t activations =
      tokens * (c.num_hidden_layers * layer + 4 * c.intermediate_size + 4 * d);
  return 4 * (2 * parameters + 3 * parameters / ranks + activations);
}

}  // namespace

Json BenchTrain(const TrainBenchOptions& options) {
  BenchLearner learner(options.model, options.threads, options.activation_checkpointing);
  const BenchModel& model = options.model;
  const int64_t ranks = learner.world().size(), tokens = model.sequence * model.sequences;
  std::vector<TokenBatch> packs;
  for (int64_t i = 0; i < options.packs; ++i) {
    packs.push_back(
        RandomPack(model, learner.world().rank() * options.packs + i, options.packs * ranks));
  }
  const GemmCounts gemms = TrainingGemms(model.config, model.sequence, model.sequences);
  GemmTimer timer(learner.ctx().pool(), gemms);
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
                 {"sequence", model.sequence},
                 {"sequences", model.sequences},
                 {"packs", options.packs},
                 {"steps", options.rounds},
                 {"tokens_per_second", count / Fastest(seconds)},
                 {"tokens_per_second_median", count / Median(seconds)},
                 {"gemm_bound_fraction", timer.Fastest() * rank_packs / Fastest(seconds)},
                 {"gemm_bound_fraction_median", timer.Median() * rank_packs / Median(seconds)},
                 {"gemm_gflops", Flops(gemms) / timer.Fastest() / 1e9},
                 {"gflops", Flops(gemms) * rank_packs / Fastest(seconds) / 1e9},
                 {"peak_bytes", PeakBytes(usage)}};
  if (!model.config.is_moe() && !options.activation_checkpointing) {
    const int64_t expected = ExpectedPeakBytes(model.config, tokens, ranks);
    result["peak_bytes"]["expected"] = expected;
  }
  return result;
}

}  // namespace hone::launcher
