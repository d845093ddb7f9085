// `hone bench lag`: one rollout behind, against the longer of sampling and learning.
//
// A run of GRPO twice, with the learner on one core and a worker on another: in turns (lag: 0),
// which tells how long a rollout is sampled and how long it is learned from; and one rollout behind
// (lag: 1), where the shorter of the two is to hide behind the longer.
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "data/tokenizer.h"
#include "launcher/bench/bench.h"
#include "launcher/child_process.h"
#include "parallel/comm/process_group.h"
#include "rl/learner.h"
#include "rl/run_directory.h"
#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"
#include "runtime/error.h"

namespace hone::launcher {
namespace {

constexpr int kLearnerCore = 0, kWorkerCore = 1;
constexpr size_t kWarmUp = 2;          // rollouts that are not counted
constexpr int64_t kPromptTokens = 64;  // more than any of them has
constexpr auto kPatience = std::chrono::seconds(10);

// What this thread starts from now on runs there too.
void PinTo(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  Check<ConfigError>(sched_setaffinity(0, sizeof cores, &cores) == 0,
                     "[bench] core {} cannot be had: learner and worker need a core each", core);
}

rl::RunConfig ConfigOf(const LagBenchOptions& o, int lag) {
  const std::string yaml = fmt::format(
      R"(run: {{name: lag, seed: 1}}
tokenizer: byte
model: {{family: llama, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1,
  num_attention_heads: 1, vocab_size: 263, max_position_embeddings: 64}}
optimizer: {{weight_decay: 0.0}}
rollout: {{workers: 1, lag: {}, max_batch: {}, prefill_chunk: 1024, prompts_per_lease: {}}}
stages:
  - {{name: rl, kind: grpo, steps: {}, save_every: 1000000, lr: {{peak: 1.0e-6}},
     batch: {{pack_tokens: {}}}, prompts: {{family: chain}}, prompts_per_rollout: {},
     group_size: {}, reward: {{accuracy: 1}}, loss: {{kl_coefficient: 0}},
     sampling: {{max_new_tokens: {}}}, max_unusable: 1.0}}
)",
      lag, o.prompts * o.group, o.prompts, o.rounds + static_cast<int64_t>(kWarmUp),
      std::max<int64_t>(2048, 2 * o.new_tokens), o.prompts, o.group, o.new_tokens);
  rl::RunConfig config = rl::ReadRunConfig(Config::FromString(yaml, "bench"));
  config.model = o.model.config;
  config.model.max_position_embeddings = kPromptTokens + o.new_tokens;
  return config;
}

void Train(const rl::RunConfig& config, const std::string& dir) {
  const std::atomic<bool> stop{false};
  rl::RunDirectory directory(runtime::LocalFileSystem(), dir);
  directory.Acquire(0);
  Context ctx(Device::Cpu(), 1);
  parallel::Mesh mesh(config.mesh, parallel::MakeSingleGroup());
  rl::Learner learner(ctx, mesh, config, directory.fs());
  rl::SamplePool pool(learner, directory, directory.Secret(), stop);
  auto metrics = std::make_unique<runtime::MetricsWriter>(directory.fs(), directory.metrics());
  rl::RunState state;
  rl::Environment env{config, directory, learner, data::LoadTokenizer("byte", {}),
                      state,  metrics,   &pool,   stop};
  rl::RunStages(env, "");
}

struct Rollouts {
  std::vector<double> seconds, waiting;  // of each: altogether, and for its samples
};

Rollouts RunWith(const LagBenchOptions& o, int lag) {
  const std::filesystem::path dir =
      std::filesystem::path(o.folder) / fmt::format("hone-bench-lag-{}-{}", getpid(), lag);
  std::filesystem::create_directories(dir);
  Rollouts rollouts;
  {
    PinTo(kWorkerCore);
    ChildProcess worker({{ThisProgram(), "worker", "--run-dir", dir, "--name", "bench"},
                         {},
                         dir / "worker.log",
                         false});
    PinTo(kLearnerCore);
    Train(ConfigOf(o, lag), dir);
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!worker.Ended() && std::chrono::steady_clock::now() < deadline) {
      worker.Drain();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  std::istringstream lines(runtime::LocalFileSystem().ReadAll(dir / "metrics.jsonl"));
  size_t skip = kWarmUp;
  for (std::string line; std::getline(lines, line);) {
    const Json step = Json::parse(line);
    if (skip > 0 && skip-- > 0) continue;
    rollouts.seconds.push_back(step.at("seconds"));
    rollouts.waiting.push_back(step.at("waiting_seconds"));
  }
  std::filesystem::remove_all(dir);
  return rollouts;
}

}  // namespace

Json BenchLag(const LagBenchOptions& options) {
  double load[3] = {};
  (void)!getloadavg(load, 3);
  const Rollouts turns = RunWith(options, 0), behind = RunWith(options, 1);
  std::vector<double> learning;
  for (size_t i = 0; i < turns.seconds.size(); ++i) {
    learning.push_back(turns.seconds[i] - turns.waiting[i]);
  }
  const double sampled = Median(turns.waiting), learned = Median(learning);
  const double rollout = Median(behind.seconds), longer = std::max(sampled, learned);
  return {{"bench", "lag"},
          {"preset", options.model.preset},
          {"model", ModelToJson(options.model.config)},
          {"prompts", options.prompts},
          {"group", options.group},
          {"new_tokens", options.new_tokens},
          {"rounds", options.rounds},
          {"load_before", load[0]},
          {"sampling_seconds", sampled},
          {"learning_seconds", learned},
          {"in_turns_seconds", Median(turns.seconds)},
          {"one_behind_seconds", rollout},
          {"one_behind_seconds_fastest", Fastest(behind.seconds)},
          {"of_the_longer", rollout / longer}};
}

}  // namespace hone::launcher
