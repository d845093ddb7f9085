// `hone bench`: how fast this machine trains, decodes, communicates and saves.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "launcher/bench/bench.h"
#include "launcher/command_line.h"
#include "launcher/commands.h"

namespace hone::launcher {
namespace {

struct Flags {
  std::string preset = "30m", folder = ".", clock = "wall", numerics = "batch_invariant";
  int threads = 1;
  int64_t rounds = 0, packs = 1, sequence = 0, sequences = 0;
  int64_t layers = 0, hidden = 0, intermediate = 0, heads = 0, vocab = 0;
  bool activation_checkpointing = false, uneven = false;
  RolloutBenchOptions rollout;
  LagBenchOptions lag;
  CommBenchOptions comm;
  TokenizerBenchOptions tokenizer;
};

void SetUnlessZero(int64_t* field, int64_t value) {
  if (value != 0) *field = value;
}

BenchModel ModelOf(const Flags& flags) {
  BenchModel m = MakeBenchModel(flags.preset);
  model::ModelConfig& c = m.config;
  SetUnlessZero(&m.sequence, flags.sequence);
  SetUnlessZero(&m.sequences, flags.sequences);
  m.uneven = flags.uneven;
  SetUnlessZero(&c.num_hidden_layers, flags.layers);
  SetUnlessZero(&c.hidden_size, flags.hidden);
  SetUnlessZero(&c.intermediate_size, flags.intermediate);
  SetUnlessZero(&c.vocab_size, flags.vocab);
  if (flags.heads != 0) c.num_attention_heads = c.num_key_value_heads = flags.heads;
  if (flags.heads != 0 || flags.hidden != 0) c.head_dim = 0;
  SetUnlessZero(&c.max_position_embeddings, std::max(c.max_position_embeddings, 2 * m.sequence));
  c.FillDerived();
  c.Validate("hone bench");
  return m;
}

void AddModelFlags(CLI::App& app, Flags& flags) {
  app.add_option("--preset", flags.preset, "30m, 1m or moe8")
      ->check(CLI::IsMember(BenchPresets()))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "of this rank")->capture_default_str();
  app.add_option("--layers", flags.layers, "instead of the preset's");
  app.add_option("--hidden", flags.hidden, "instead of the preset's");
  app.add_option("--intermediate", flags.intermediate, "instead of the preset's");
  app.add_option("--heads", flags.heads, "instead of the preset's");
  app.add_option("--vocab", flags.vocab, "instead of the preset's");
}

Json Train(const Flags& flags) {
  TrainBenchOptions options;
  options.model = ModelOf(flags);
  options.threads = flags.threads;
  options.packs = flags.packs;
  options.activation_checkpointing = flags.activation_checkpointing;
  options.numerics = runtime::NumericsFromName(flags.numerics);
  SetUnlessZero(&options.rounds, flags.rounds);
  return BenchTrain(options);
}

Json Rollout(const Flags& flags) {
  RolloutBenchOptions options = flags.rollout;
  options.model = ModelOf(flags);
  options.threads = flags.threads;
  SetUnlessZero(&options.rounds, flags.rounds);
  return BenchRollout(options);
}

Json Lag(const Flags& flags) {
  LagBenchOptions options = flags.lag;
  options.model = ModelOf(flags);
  options.folder = flags.folder;
  SetUnlessZero(&options.rounds, flags.rounds);
  return BenchLag(options);
}

Json Comm(const Flags& flags) {
  CommBenchOptions options = flags.comm;
  SetUnlessZero(&options.rounds, flags.rounds);
  return BenchComm(options);
}

Json Checkpoint(const Flags& flags) {
  CheckpointBenchOptions options;
  options.model = ModelOf(flags);
  options.threads = flags.threads;
  options.folder = flags.folder;
  SetUnlessZero(&options.rounds, flags.rounds);
  return BenchCheckpoint(options);
}

Json Tokenizer(const Flags& flags) {
  TokenizerBenchOptions options = flags.tokenizer;
  SetUnlessZero(&options.rounds, flags.rounds);
  return BenchTokenizer(options);
}

void AddTrainFlags(CLI::App& app, Flags& flags) {
  AddModelFlags(app, flags);
  app.add_option("--sequence", flags.sequence, "tokens of a sequence, instead of the preset's");
  app.add_option("--sequences", flags.sequences, "sequences of a pack, instead of the preset's");
  app.add_flag("--uneven", flags.uneven, "sequences of many lengths, that one on average");
  app.add_option("--packs", flags.packs, "packs of a rank and step")->capture_default_str();
  app.add_flag("--activation-checkpointing", flags.activation_checkpointing,
               "keep only layers' inputs");
  app.add_option("--numerics", flags.numerics, "as train.numerics")
      ->check(CLI::IsMember(runtime::NumericsNames()))
      ->capture_default_str();
}

void AddRolloutFlags(CLI::App& app, Flags& flags) {
  AddModelFlags(app, flags);
  RolloutBenchOptions& o = flags.rollout;
  app.add_option("--batch", o.batch, "sequences decoded at once")->capture_default_str();
  app.add_option("--prompt", o.prompt, "tokens of a prompt")->capture_default_str();
  app.add_option("--new-tokens", o.new_tokens, "tokens drawn a sequence")->capture_default_str();
  app.add_option("--group", o.group, "samples that share a prompt, for the prefill's count")
      ->capture_default_str();
}

void AddLagFlags(CLI::App& app, Flags& flags) {
  AddModelFlags(app, flags);
  LagBenchOptions& o = flags.lag;
  app.add_option("--prompts", o.prompts, "of a rollout")->capture_default_str();
  app.add_option("--group", o.group, "samples a prompt")->capture_default_str();
  app.add_option("--new-tokens", o.new_tokens, "tokens drawn a sample")->capture_default_str();
  app.add_option("--dir", flags.folder, "where to write")->capture_default_str();
}

// "key  value" a line; nested objects as "outer.inner".
void Print(const Json& json, const std::string& prefix) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_object()) {
      Print(value, prefix + key + ".");
    } else {
      std::cout << fmt::format(
          "{:<36} {}\n", prefix + key,
          value.is_number_float() ? fmt::format("{:.4g}", value.get<double>()) : value.dump());
    }
  }
}

}  // namespace

int BenchCommand(const Arguments& args) {
  Flags flags;
  bool json = false;
  CLI::App app("Speed of this machine; under mpirun of all ranks together", "hone bench");
  app.require_subcommand(1);
  struct Bench {
    CLI::App* app;
    Json (*run)(const Flags&);
  };
  std::vector<Bench> benches = {
      {app.add_subcommand("train", "optimizer steps against the bound of their products"), Train},
      {app.add_subcommand("rollout", "decoding, shared prompts, weight publication"), Rollout},
      {app.add_subcommand("comm", "collectives between the ranks of mpirun"), Comm},
      {app.add_subcommand("checkpoint", "saving against writing plainly"), Checkpoint},
      {app.add_subcommand("tokenizer", "text to ids, on one core"), Tokenizer},
      {app.add_subcommand("lag", "lag: 1, learner and worker on a core each"), Lag}};
  AddTrainFlags(*benches[0].app, flags);
  AddRolloutFlags(*benches[1].app, flags);
  benches[2].app->add_option("--bytes", flags.comm.bytes, "of a tensor")->capture_default_str();
  AddLagFlags(*benches[5].app, flags);
  AddModelFlags(*benches[3].app, flags);
  benches[3].app->add_option("--dir", flags.folder, "where to write")->capture_default_str();
  benches[4]
      .app->add_option("--tokenizer", flags.tokenizer.tokenizer, "file or folder")
      ->required();
  benches[4].app->add_option("--text", flags.tokenizer.text, "a file of text")->required();
  for (const Bench& b : benches) {
    b.app->add_flag("--json", json, "one JSON object");
    b.app->add_option("--rounds", flags.rounds, "how often to measure");
    b.app->add_option("--clock", flags.clock, "wall, or cpu: seconds of this process's threads")
        ->check(CLI::IsMember({"wall", "cpu"}))
        ->capture_default_str();
  }
  if (int code = 0; !ParseArguments(app, args, &code)) return code;
  SetClock(flags.clock == "cpu" ? Clock::kCpu : Clock::kWall);
  for (const Bench& b : benches) {
    if (!b.app->parsed()) continue;
    Json result = b.run(flags);
    result["clock"] = flags.clock;
    if (RankFromEnvironment() != 0) return 0;
    if (json) {
      std::cout << result.dump(1) << "\n";
    } else {
      Print(result, "");
    }
  }
  return 0;
}

}  // namespace hone::launcher
