// `hone bench rollout`: decoding, what a group's shared prompt costs, and publishing weights.
#include <nlohmann/json.hpp>

#include "launcher/bench/bench.h"
#include "launcher/bench/gemm_bound.h"
#include "model/transformer_stage.h"
#include "rl/rollout/inference_engine.h"

namespace hone::launcher {
namespace {

struct Decoding {
  double seconds = 0;
  int64_t tokens = 0, prefill_tokens = 0;
};

std::vector<int32_t> RandomPrompt(const BenchModel& model, int64_t tokens, uint64_t seed) {
  RandomStream stream({seed});
  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < tokens; ++i) {
    prompt.push_back(static_cast<int32_t>(
        stream.Below(static_cast<uint64_t>(model.config.vocab_size), static_cast<uint64_t>(i))));
  }
  return prompt;
}

// `batch` prompts, the first `share` of them the same, completed to their full length. Time counts
// from the first step in which every sequence decodes.
Decoding Decode(Context& ctx, model::TransformerStage& stage, const RolloutBenchOptions& options,
                int64_t share) {
  rl::EngineConfig config;
  config.max_batch = options.batch;
  config.max_tokens = options.prompt + options.new_tokens;
  config.prefill_chunk = options.batch * options.prompt;
  rl::InferenceEngine engine(ctx, stage, config);
  for (int64_t i = 0; i < options.batch; ++i) {
    rl::GenerateRequest request;
    request.id = static_cast<uint64_t>(i);
    const auto prompt_of = static_cast<uint64_t>(i < share ? 0 : i);
    request.prompt = RandomPrompt(options.model, options.prompt, prompt_of);
    request.max_new_tokens = options.new_tokens;
    request.stream = RandomStream({7, static_cast<uint64_t>(i)});
    request.group = i < share ? 1 : 0;
    engine.Add(std::move(request));
  }
  Decoding result;
  engine.Step();
  if (share > 1) engine.Step();
  const int64_t before = engine.stats().decoded_tokens;
  result.seconds = SecondsOf([&] {
    while (engine.pending() == options.batch) engine.Step();
  });
  result.tokens = engine.stats().decoded_tokens - before;
  result.prefill_tokens = engine.stats().prefill_tokens;
  return result;
}

// Seconds of reading the keys and values of `tokens` tokens once, from memory that no cache holds.
double SecondsToRead(Context& ctx, double bytes) {
  const int64_t size = 256 << 20;
  Tensor from = ctx.Zeros({size / 8}, DType::kF64);
  const double* data = from.data<double>();
  double sum[8] = {};
  const double seconds = SecondsOf([&] {
    for (int64_t i = 0; i < from.size(); i += 8) {
      for (int64_t j = 0; j < 8; ++j) sum[j] += data[i + j];
    }
  });
  volatile double keep = sum[0] + sum[7];
  (void)keep;
  return seconds * bytes / static_cast<double>(size);
}

}  // namespace

Json BenchRollout(const RolloutBenchOptions& options) {
  Context ctx(Device::Cpu(), options.threads);
  const model::ModelConfig& c = options.model.config;
  model::StageOptions stage_options;
  stage_options.end_layer = c.num_hidden_layers;
  stage_options.with_gradients = false;
  model::TransformerStage stage(ctx, c, stage_options);
  stage.Initialize(1);
  GemmTimer timer(ctx.pool(), DecodingGemms(c, options.batch));
  std::vector<double> a_token, read;
  // On average half of the new tokens are in the cache.
  const double kept =
      static_cast<double>(options.prompt) + static_cast<double>(options.new_tokens) / 2;
  const double bytes = kept * static_cast<double>(options.batch * c.num_hidden_layers * 2 *
                                                  c.num_key_value_heads * c.head_dim * 4);
  for (int64_t i = 0; i < options.rounds; ++i) {
    timer.Round();
    read.push_back(SecondsToRead(ctx, bytes));
    const Decoding d = Decode(ctx, stage, options, 0);
    a_token.push_back(d.seconds / static_cast<double>(d.tokens));
  }
  RolloutBenchOptions grouped = options;
  grouped.batch = options.group;
  grouped.new_tokens = 4;
  const Decoding group = Decode(ctx, stage, grouped, options.group);
  const double step = Fastest(a_token) * static_cast<double>(options.batch);
  return {{"bench", "rollout"},
          {"preset", options.model.preset},
          {"model", ModelToJson(c)},
          {"threads", options.threads},
          {"batch", options.batch},
          {"prompt", options.prompt},
          {"new_tokens", options.new_tokens},
          {"tokens_per_second", 1 / Fastest(a_token)},
          {"tokens_per_second_median", 1 / Median(a_token)},
          {"bound_fraction", (timer.Fastest() + Fastest(read)) / step},
          {"gemm_seconds_a_step", timer.Fastest()},
          {"kv_seconds_a_step", Fastest(read)},
          {"step_seconds", step},
          {"group", options.group},
          {"group_prefill_tokens", group.prefill_tokens}};
}

}  // namespace hone::launcher
