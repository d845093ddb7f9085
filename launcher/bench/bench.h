// What `hone bench` measures, and the models it measures with.
//
// On a machine that others use too, a duration says more about them than about the program: so each
// figure is taken in rounds that alternate with what it is compared to, and comes twice, from the
// fastest round and from the middle one (`…_median`).
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "runtime/context.h"
#include "runtime/token_batch.h"

namespace hone::launcher {

using Json = nlohmann::ordered_json;

// `dense` models are tied Llamas, of about the number of parameters that their name says.
struct BenchModel {
  std::string preset = "30m";
  model::ModelConfig config;
  int64_t sequence = 512, sequences = 4;  // of a pack
  bool uneven = false;  // lengths from a sixteenth of `sequence` to its double less that, evenly
                        // spread, short beside long; else all of `sequence` tokens
};
// The sequences' lengths, in the order of the pack. They add to sequence · sequences.
std::vector<int64_t> Lengths(const BenchModel& model);
const std::vector<std::string>& BenchPresets();  // 30m 1m moe8
BenchModel MakeBenchModel(const std::string& preset);
Json ModelToJson(const model::ModelConfig& config);

// Random tokens; every token has a target and the weights add to 1 over `packs` such packs.
TokenBatch RandomPack(const BenchModel& model, uint64_t seed, int64_t packs);

// Of the wall; or, to leave out what else runs on the machine, of this process's threads together.
enum class Clock { kWall, kCpu };
void SetClock(Clock clock);
double SecondsOf(const std::function<void()>& work);
double Fastest(const std::vector<double>& seconds);
double Median(std::vector<double> seconds);

// Each fills `result`; a line a figure is for people to read.
struct TrainBenchOptions {
  BenchModel model;
  int threads = 1;
  int64_t packs = 1;  // of a rank and step: microbatches
  int64_t rounds = 5;
  bool activation_checkpointing = false;
  Numerics numerics = Numerics::kBatchInvariant;
};
Json BenchTrain(const TrainBenchOptions& options);

struct CheckpointBenchOptions {
  BenchModel model;
  int threads = 1;
  int64_t rounds = 3;
  std::string folder;  // where to write
};
Json BenchCheckpoint(const CheckpointBenchOptions& options);

struct RolloutBenchOptions {
  BenchModel model;
  int threads = 1;
  int64_t batch = 32, prompt = 64, new_tokens = 128, group = 8;
  int64_t rounds = 2;
};
Json BenchRollout(const RolloutBenchOptions& options);

// Learner and worker on a core each; see lag_bench.cc.
struct LagBenchOptions {
  BenchModel model;
  int64_t prompts = 8, group = 8, new_tokens = 64;  // a rollout
  int64_t rounds = 6;                               // rollouts measured, each way
  std::string folder;                               // where the two runs are
};
Json BenchLag(const LagBenchOptions& options);

struct CommBenchOptions {
  int64_t bytes = 16 << 20;
  int64_t rounds = 10;
};
Json BenchComm(const CommBenchOptions& options);

struct TokenizerBenchOptions {
  std::string tokenizer, text;  // paths
  int64_t rounds = 5;
};
// `bytes_per_second` is of a tokenizer that has seen no text: no word is in its cache yet.
Json BenchTokenizer(const TokenizerBenchOptions& options);

}  // namespace hone::launcher
