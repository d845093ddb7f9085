// `hone bench rollout`: decoding, what a group's shared prompt costs, and publishing weights.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "launcher/bench/bare_stream.h"
#include "launcher/bench/bench.h"
#include "launcher/bench/gemm_bound.h"
#include "model/transformer_stage.h"
#include "rl/rollout/inference_engine.h"
#include "rl/rollout/weight_publisher.h"

namespace hone::launcher {
namespace {

constexpr char kSecret[] = "bench";

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

// Seconds of reading `bytes` at the memory's rate, with as many threads as the model has.
double SecondsToRead(Context& ctx, double bytes) {
  constexpr int64_t kSize = 256 << 20, kPiece = 32 << 10;  // a piece stays in the first cache
  const Tensor from = ctx.Zeros({kSize / 4}, DType::kF32);
  double fastest = 1e30;
  for (int pass = 0; pass < 3; ++pass) {
    fastest = std::min(fastest, SecondsOf([&] {
                         ctx.pool().ParallelFor(kSize / kPiece, 64, [&](int64_t b, int64_t e) {
                           char to[kPiece];
                           for (int64_t i = b; i < e; ++i) {
                             std::memcpy(to, static_cast<char*>(from.raw()) + i * kPiece, kPiece);
                             volatile char keep = to[i % kPiece];
                             (void)keep;
                           }
                         });
                       }));
  }
  return fastest * bytes / static_cast<double>(kSize);
}

// Seconds of getting one set of weights to a worker: copying and digesting them, and fetching them
// through shared memory or gRPC; against a bare stream of as many bytes.
Json Publication(Context& ctx, model::TransformerStage& stage, int64_t rounds) {
  const parallel::GroupPtr world = parallel::MakeSingleGroup();
  rl::WeightPublisher publisher({.listen = "127.0.0.1:0",
                                 .secret = kSecret,
                                 .tls_certificate = {},
                                 .tls_key = {},
                                 .tls_ca = {},
                                 .shared_memory = true});
  const SlabIndex weights = stage.State();
  SlabIndex target;
  double bytes = 0;
  for (const SlabTensor& s : weights) {
    target.push_back({s.slab, ctx.Clone(s.tensor)});
    bytes += static_cast<double>(s.tensor.bytes());
  }
  const auto sync = [](bool shared_memory) {
    return rl::WeightSync({.secret = kSecret,
                           .tls_certificate = {},
                           .tls_key = {},
                           .tls_ca = {},
                           .shared_memory = shared_memory});
  };
  rl::WeightSync shared = sync(true), streamed = sync(false);
  std::vector<double> publish, by_memory, by_stream, bare;
  for (int64_t i = 0; i < rounds; ++i) {
    rl::WeightVersion version;
    publish.push_back(SecondsOf([&] { version = publisher.Publish(*world, i + 1, weights); }));
    by_memory.push_back(SecondsOf([&] { shared.Fetch(version, target); }));
    by_stream.push_back(SecondsOf([&] { streamed.Fetch(version, target); }));
    bare.push_back(SecondsOfBareStream(static_cast<int64_t>(bytes)));
  }
  return {{"bytes", bytes},
          {"publish_bytes_per_second", bytes / Fastest(publish)},
          {"shared_memory_bytes_per_second", bytes / Fastest(by_memory)},
          {"stream_bytes_per_second", bytes / Fastest(by_stream)},
          {"bare_stream_bytes_per_second", bytes / Fastest(bare)},
          {"stream_of_bare", Fastest(bare) / Fastest(by_stream)}};
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
  GemmTimer timer(ctx, DecodingGemms(c, options.batch));
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
          {"group_prefill_tokens", group.prefill_tokens},
          {"publication", Publication(ctx, stage, std::max<int64_t>(2, options.rounds))}};
}

}  // namespace hone::launcher
