#include "launcher/bench/bench.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::launcher {
namespace {

model::ModelConfig Dense(int64_t hidden, int64_t intermediate, int64_t layers, int64_t heads,
                         int64_t vocab) {
  model::ModelConfig c;
  c.family = model::Family::kLlama;
  c.hidden_size = hidden;
  c.intermediate_size = intermediate;
  c.num_hidden_layers = layers;
  c.num_attention_heads = c.num_key_value_heads = heads;
  c.vocab_size = vocab;
  c.max_position_embeddings = 4096;
  c.tie_word_embeddings = true;
  c.rms_norm_eps = 1e-5;
  return c;
}

Clock the_clock = Clock::kWall;

double Now() {
  if (the_clock == Clock::kWall) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

const std::vector<std::string>& BenchPresets() {
  static const std::vector<std::string> names = {"30m", "1m", "moe8"};
  return names;
}

BenchModel MakeBenchModel(const std::string& preset) {
  BenchModel m;
  m.preset = preset;
  if (preset == "1m") {
    m.config = Dense(128, 384, 4, 4, 1024);
    m.sequence = 256;
    m.sequences = 16;
  } else {
    m.config = Dense(512, 1408, 8, 8, 8192);
  }
  if (preset == "moe8") {  // two of eight experts of half the width: the dense model's active size
    m.config.family = model::Family::kQwen3Moe;
    m.config.qk_norm = true;
    m.config.n_routed_experts = 8;
    m.config.num_experts_per_tok = 2;
    m.config.moe_intermediate_size = m.config.intermediate_size / 2;
  }
  m.config.FillDerived();
  m.config.Validate("preset " + preset);
  return m;
}

Json ModelToJson(const model::ModelConfig& c) {
  return {{"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"layers", c.num_hidden_layers},
          {"heads", c.num_attention_heads},
          {"kv_heads", c.num_key_value_heads},
          {"head_dim", c.head_dim},
          {"vocab_size", c.vocab_size},
          {"experts", c.n_routed_experts},
          {"experts_per_token", c.num_experts_per_tok},
          {"eps", c.rms_norm_eps},
          {"attention_bias", c.attention_bias},
          {"parameters", c.ParameterCount(false)},
          {"active_parameters", c.ActiveParameterCount(false)}};
}

std::vector<int64_t> Lengths(const BenchModel& model) {
  std::vector<int64_t> lengths(model.sequences, model.sequence);
  if (!model.uneven) return lengths;
  const int64_t shortest = std::max<int64_t>(1, model.sequence / 16);
  for (int64_t i = 0; i + 1 < model.sequences; i += 2) {  // a pair's are as far from the mean
    const int64_t far = model.sequence - shortest;
    const int64_t distance = far - far * i / std::max<int64_t>(1, model.sequences - 1);
    lengths[i] -= distance;
    lengths[i + 1] += distance;
  }
  return lengths;
}

TokenBatch RandomPack(const BenchModel& model, uint64_t seed, int64_t packs) {
  TokenBatch batch;
  RandomStream stream({seed});
  const auto vocab = static_cast<uint64_t>(model.config.vocab_size);
  const int64_t tokens = model.sequence * model.sequences;
  const float weight = 1.0f / static_cast<float>(tokens * packs);
  batch.cu_seqlens.push_back(0);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto at = static_cast<uint64_t>(2 * t);
    batch.token_T.push_back(static_cast<int32_t>(stream.Below(vocab, at)));
    batch.target_T.push_back(static_cast<int32_t>(stream.Below(vocab, at + 1)));
    batch.loss_weight_T.push_back(weight);
  }
  for (const int64_t length : Lengths(model)) {
    for (int64_t t = 0; t < length; ++t) batch.position_T.push_back(static_cast<int32_t>(t));
    batch.cu_seqlens.push_back(batch.cu_seqlens.back() + static_cast<int32_t>(length));
  }
  return batch;
}

void SetClock(Clock clock) { the_clock = clock; }

double SecondsOf(const std::function<void()>& work) {
  const double begin = Now();
  work();
  return Now() - begin;
}

double Fastest(const std::vector<double>& seconds) {
  return *std::min_element(seconds.begin(), seconds.end());
}

double Median(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace hone::launcher
