// Whole runs inside a test program: threads as learner ranks, a tiny model, everything else as in
// `hone train`.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "parallel/comm/device_group.h"
#include "parallel/comm/process_group.h"
#include "rl/learner.h"
#include "rl/run_directory.h"
#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/device.h"
#include "tests/read_json.h"

namespace hone::rl {

// The head of a config: a model with everything that has state, which is latent attention, experts
// with a bias rule, a prediction module, tied heads.
inline const std::string kTinyModel = R"(run: {name: tiny, seed: 3}
tokenizer: byte
model: {family: deepseek_v3, hidden_size: 12, intermediate_size: 20, moe_intermediate_size: 8,
  num_hidden_layers: 4, first_k_dense_replace: 1, num_attention_heads: 2, kv_lora_rank: 8,
  q_lora_rank: 6, qk_nope_head_dim: 4, qk_rope_head_dim: 4, v_head_dim: 4, n_routed_experts: 4,
  n_shared_experts: 1, num_experts_per_tok: 2, n_group: 2, topk_group: 1, vocab_size: 263,
  max_position_embeddings: 128, num_nextn_predict_layers: 1, bias_update_speed: 0.01,
  balance_loss_alpha: 0.01, tie_word_embeddings: true, initializer_range: 0.1}
)";

// Two stages over it. `questions`: a JSONL file.
inline std::string TinyRun(const std::string& questions) {
  return kTinyModel + R"(optimizer: {weight_decay: 0.1, clip: 0.5}
train: {dtype: f64}
stages:
  - {name: base, kind: pretrain, steps: 6, save_every: 2, lr: {peak: 0.003, warmup: 2},
     batch: {packs: 8, pack_tokens: 48}, data: {family: chain, text: answer}}
  - {name: sft, kind: sft, from: base, epochs: 2, save_every: 2, lr: {peak: 0.002},
     batch: {packs: 8, pack_tokens: 24}, heldout_every: 2, heldout: {family: chain, text: answer},
     data: {jsonl: )" +
         questions + "}}\n";
}

inline void WriteQuestions(const std::string& path) {
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    lines += nlohmann::json{{"prompt", fmt::format("n{}=", i * 7)},
                            {"completion", std::string(1 + i % 9, static_cast<char>('a' + i % 5))}}
                 .dump() +
             "\n";
  }
  runtime::LocalFileSystem().WriteAtomically(path, lines);
}

// One rank of `hone train`, with a pool that workers could join or without. False when it stopped
// early: with `stop` it does after every step.
inline bool TrainOneRank(const RunConfig& config, const std::string& dir,
                         const std::atomic<bool>& stop, const parallel::GroupPtr& world,
                         Device device, bool with_pool = false) {
  RunDirectory directory(runtime::LocalFileSystem(), dir);
  if (world->rank() == 0) directory.Acquire(0);
  world->Barrier();
  Context ctx(device, config.train.threads);
  const bool as_it_is = device.is_cpu() || world->size() == 1;
  parallel::Mesh mesh(config.mesh, as_it_is ? world : parallel::MakeStagedGroup(ctx, world));
  Learner learner(ctx, mesh, config, directory.fs());
  std::unique_ptr<runtime::MetricsWriter> metrics;
  if (world->rank() == 0) {
    metrics = std::make_unique<runtime::MetricsWriter>(directory.fs(), directory.metrics());
  }
  std::unique_ptr<SamplePool> pool;
  if (with_pool) pool = std::make_unique<SamplePool>(learner, directory, "secret", stop);
  RunState state;
  Environment env{
      config, directory, learner,    data::LoadTokenizer(config.tokenizer, config.special_tokens),
      state,  metrics,   pool.get(), stop};
  bool done = true;
  try {
    RunStages(env, "");
  } catch (const StoppedEarly&) {
    done = false;
  }
  world->Barrier();
  return done;
}

inline bool Train(const std::string& yaml, const std::vector<std::string>& overrides,
                  const std::string& dir, bool stop = false, Device device = TestDevice()) {
  Config file = Config::FromString(yaml, "test.yaml");
  for (const std::string& assignment : overrides) file.Override(assignment);
  const RunConfig config = ReadRunConfig(file);
  CheckRun(config);
  const std::atomic<bool> stop_flag{stop};
  std::atomic<bool> done{false};
  parallel::RunThreadRanks(config.mesh.ranks(), [&](const parallel::GroupPtr& world) {
    const bool mine = TrainOneRank(config, dir, stop_flag, world, device);
    if (world->rank() == 0) done = mine;
  });
  return done;
}

using Tensors = std::map<std::string, std::vector<double>>;

// All tensors of a checkpoint: weights and the optimizer's states.
inline Tensors ReadCheckpoint(const std::string& folder) {
  Context ctx;
  runtime::CheckpointReader reader(runtime::LocalFileSystem(), folder);
  SlabIndex all;
  for (const Slab& slab : reader.Tensors()) {
    all.push_back({slab, ctx.Empty(slab.extent, DType::kF64)});
  }
  reader.Load(all);
  Tensors tensors;
  for (const SlabTensor& t : all) tensors[t.slab.name] = runtime::ToDoubles(t.tensor);
  return tensors;
}

// A stage's checkpoints by step.
inline std::map<int64_t, Tensors> ReadCheckpoints(const std::string& dir,
                                                  const std::string& stage) {
  const std::string folder = dir + "/checkpoints/" + stage + "/";
  std::map<int64_t, Tensors> checkpoints;
  for (int64_t step : runtime::ListCheckpointSteps(runtime::LocalFileSystem(), folder)) {
    checkpoints[step] = ReadCheckpoint(folder + runtime::CheckpointStepName(step));
  }
  return checkpoints;
}

// What a finished run left behind, without what tells the time.
struct RunTrace {
  Tensors tensors;  // of the stages' last checkpoints
  std::vector<nlohmann::json> metrics;
  bool operator==(const RunTrace&) const = default;
};

inline RunTrace ReadTrace(const std::string& dir, const std::vector<std::string>& stages) {
  RunTrace trace;
  auto& fs = runtime::LocalFileSystem();
  for (const std::string& stage : stages) {
    const std::string folder = dir + "/checkpoints/" + stage;
    const auto steps = runtime::ListCheckpointSteps(fs, folder);
    Check(!steps.empty(), "no checkpoint in {}", folder);
    for (auto& [name, values] :
         ReadCheckpoint(folder + "/" + runtime::CheckpointStepName(steps.back()))) {
      trace.tensors[stage + "/" + name] = std::move(values);
    }
  }
  std::istringstream lines(fs.ReadAll(dir + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    trace.metrics.push_back(ParseJson(line));
    trace.metrics.back().erase("seconds");
    trace.metrics.back().erase("waiting_seconds");
    trace.metrics.back().erase("publish_seconds");
  }
  return trace;
}

}  // namespace hone::rl
