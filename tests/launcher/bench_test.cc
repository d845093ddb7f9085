// What `hone bench` counts, not how fast it is.
#include "launcher/bench/bench.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

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
    const double flops = Flops(TrainingGemms(c, Lengths(m)));
    EXPECT_NEAR(flops / (6 * products * tokens + attention), 1.0, 1e-12) << preset;
  }
}

TEST(BenchTest, UnevenSequencesFillThePack) {
  BenchModel m = MakeBenchModel("1m");
  m.uneven = true;
  const TokenBatch pack = RandomPack(m, 1, 1);
  pack.Validate(m.config.vocab_size, m.config.max_position_embeddings, "the pack");
  ASSERT_EQ(pack.sequences(), 16);
  EXPECT_EQ(pack.tokens(), 4096);
  std::set<int32_t> lengths;
  for (int64_t s = 0; s < 16; ++s) lengths.insert(pack.cu_seqlens[s + 1] - pack.cu_seqlens[s]);
  EXPECT_EQ(lengths.size(), 16U);
  EXPECT_EQ(*lengths.begin(), 16);
  EXPECT_EQ(*lengths.rbegin(), 496);
  EXPECT_EQ(std::vector<int64_t>(16, 256), Lengths(MakeBenchModel("1m")));
}

TEST(BenchTest, ExpertsOfAStepAreTheDenseModelsActiveSize) {
  const BenchModel dense = MakeBenchModel("30m"), experts = MakeBenchModel("moe8");
  const double ratio = Flops(TrainingGemms(experts.config, Lengths(experts))) /
                       Flops(TrainingGemms(dense.config, Lengths(dense)));
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
