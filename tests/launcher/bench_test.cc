// What `hone bench` counts, not how fast it is.
#include "launcher/bench/bench.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launcher/bench/gemm_bound.h"

namespace hone::launcher {
namespace {

// 6 · (parameters of the layers and the head) a token, and a causal attention's six products.
TEST(BenchTest, CountsTheFlopsOfAStep) {
  for (const char* preset : {"30m", "1m"}) {
    const BenchModel m = MakeBenchModel(preset);
    const auto& c = m.config;
    const int64_t norms = (2 * c.num_hidden_layers + 1) * c.hidden_size;
    const auto products = static_cast<double>(c.ParameterCount(false) - norms);
    const auto tokens = static_cast<double>(m.sequence * m.sequences);
    const double attention = 6.0 * tokens * static_cast<double>(m.sequence) *
                             static_cast<double>(c.num_hidden_layers * c.hidden_size);
    const double flops = Flops(TrainingGemms(c, m.sequence, m.sequences));
    EXPECT_NEAR(flops / (6 * products * tokens + attention), 1.0, 1e-12) << preset;
  }
}

TEST(BenchTest, ExpertsOfAStepAreTheDenseModelsActiveSize) {
  const BenchModel dense = MakeBenchModel("30m"), experts = MakeBenchModel("moe8");
  const double ratio =
      Flops(TrainingGemms(experts.config, 512, 4)) / Flops(TrainingGemms(dense.config, 512, 4));
  EXPECT_NEAR(ratio, 1.0, 0.01);  // the router is the difference
}

TEST(BenchTest, PeakMemoryIsWhatTheFormulaSays) {
  TrainBenchOptions options;
  options.model = MakeBenchModel("1m");
  options.rounds = 1;
  const Json result = BenchTrain(options);
  const auto peak = result["peak_bytes"]["total"].get<double>();
  EXPECT_NEAR(peak / result["peak_bytes"]["expected"].get<double>(), 1.0, 0.1);
  EXPECT_GT(result["tokens_per_second"].get<double>(), 0);
  EXPECT_GT(result["gemm_bound_fraction"].get<double>(), 0);
}

TEST(BenchTest, AGroupPrefillsItsPromptOnce) {
  RolloutBenchOptions options;
  options.model = MakeBenchModel("1m");
  options.batch = 4;
  options.prompt = 48;
  options.new_tokens = 4;
  options.rounds = 1;
  const Json result = BenchRollout(options);
  EXPECT_EQ(result["group_prefill_tokens"].get<int64_t>(), 48);
  EXPECT_GT(result["publication"]["stream_bytes_per_second"].get<double>(), 0);
}

}  // namespace
}  // namespace hone::launcher
