#include "rl/run_config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <type_traits>

#include "kernels/token_logprob/token_logprob.h"
#include "rl/reward/verifier.h"
#include "rl/rollout/inference_engine.h"
#include "rl/rollout/own_certificate.h"
#include "runtime/file_system.h"
#include "runtime/philox.h"

namespace hone::rl {

namespace {

// An optional number that lies in [least, most].
template <class T>
void Bounded(ConfigReader& r, const char* key, T* value, std::type_identity_t<T> least,
             std::type_identity_t<T> most = std::numeric_limits<T>::max()) {
  r.Optional(key, value);
  if (*value >= least && *value <= most) return;
  if (most < std::numeric_limits<T>::max()) {
    r.Fail(key, fmt::format("is {}; it must lie in [{}, {}]", *value, least, most));
  }
  r.Fail(key, least == 0 ? fmt::format("is {}; it must not be negative", *value)
                         : fmt::format("is {}; it must be at least {}", *value, least));
}

// What names folders, and is named in paths and on command lines.
void CheckName(const ConfigReader& r, const std::string& name) {
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-' || c == '.';
  });
  if (!plain || name.empty() || name[0] == '.') {
    r.Fail("name", fmt::format("'{}' is no name: letters, digits, '_', '-' and '.' make one, which "
                               "does not begin with '.'",
                               name));
  }
}

}  // namespace

const std::vector<std::string>& StageKindNames() {
  static const std::vector<std::string> names = {
      "pretrain",           "sft",     "reward_model", "grpo",
      "rejection_sampling", "distill", "evaluate",     "export"};
  return names;
}

bool Supervised(StageKind kind) {
  return kind == StageKind::kPretrain || kind == StageKind::kSft || kind == StageKind::kDistill;
}

bool Trains(StageKind kind) {
  return kind != StageKind::kRejectionSampling && kind != StageKind::kEvaluate &&
         kind != StageKind::kExport;
}

bool Measured(StageKind kind) {
  return kind == StageKind::kEvaluate || (Trains(kind) && kind != StageKind::kRewardModel);
}

double LearningRate::At(int64_t step, int64_t total) const {
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  double span = static_cast<double>(std::max<int64_t>(1, total - warmup - 1));
  double t = std::clamp(static_cast<double>(step - warmup - 1) / span, 0.0, 1.0);
  switch (schedule) {
    case Schedule::kConstant:
      return peak;
    case Schedule::kLinear:
      return peak * (1 + (final_ratio - 1) * t);
    case Schedule::kCosine:
      return peak * (final_ratio + (1 - final_ratio) * 0.5 * (1 + std::cos(std::numbers::pi * t)));
  }
  return peak;
}

void LearningRate::Read(ConfigReader& r) {
  r.Required("peak", &peak);
  schedule = static_cast<Schedule>(
      r.OneOf("schedule", {"constant", "cosine", "linear"}, static_cast<int>(schedule)));
  Bounded(r, "warmup", &warmup, 0);
  Bounded(r, "final_ratio", &final_ratio, 0);
  if (peak <= 0) r.Fail("peak", "must be above 0");
}

void BatchConfig::Read(ConfigReader& r, bool with_packs, bool with_max_length) {
  if (with_packs) Bounded(r, "packs", &packs, 1);
  Bounded(r, "pack_tokens", &pack_tokens, 2);
  if (with_max_length) r.Optional("max_length", &max_length);
  if (max_length > pack_tokens) r.Fail("max_length", "is longer than pack_tokens");
  if (max_length != 0 && max_length < 2)
    r.Fail("max_length", "is 0, for as long as fits, or from 2");
}

void BatchConfig::CheckPack(int64_t prompt_tokens, int64_t max_new_tokens,
                            const std::string& where) const {
  int64_t longest = prompt_tokens + max_new_tokens - 1;  // the last token is only predicted
  Check<ConfigError>(longest <= pack_tokens,
                     "{}: a prompt of {} tokens and max_new_tokens = {} make a sequence of up to "
                     "{}, and batch.pack_tokens is {}; set it to at least {}",
                     where, prompt_tokens, max_new_tokens, longest, pack_tokens, longest);
}

void SamplingConfig::Read(ConfigReader& r) {
  Bounded(r, "max_new_tokens", &max_new_tokens, 1);
  r.Optional("temperature", &sampling.temperature);
  r.Optional("top_p", &sampling.top_p);
  Bounded(r, "top_k", &sampling.top_k, 0);
  r.Optional("stop_strings", &stop_strings);
  r.Optional("stop_tokens", &stop_tokens);
  if (r.Has("environment")) environment.Read(r.Map("environment"));
  const double t = sampling.temperature;
  if (t != 0 && (t < kernels::kLeastTemperature || t > kernels::kGreatestTemperature)) {
    r.Fail("temperature", fmt::format("must be 0 (greedy) or lie in [{}, {}]",
                                      kernels::kLeastTemperature, kernels::kGreatestTemperature));
  }
  if (sampling.top_p <= 0 || sampling.top_p > 1) r.Fail("top_p", "must lie in (0, 1]");
}

void RolloutConfig::Read(ConfigReader& r) {
  Bounded(r, "workers", &workers, 0);
  Bounded(r, "threads", &threads, 1);
  device = static_cast<Device::Type>(r.OneOf("device", {"cpu", "cuda"}, 0));
  if (r.Has("numerics")) {
    numerics = static_cast<Numerics>(r.OneOf("numerics", runtime::NumericsNames(), -1));
  }
  r.Optional("allow_logprob_gap", &allow_logprob_gap);
  publish = static_cast<Publish>(r.OneOf("publish", {"host", "device"}, 0));
  r.Optional("colocated", &colocated);
  Bounded(r, "verifier_helpers", &verifier_helpers, 1);
  r.Optional("lag", &lag);
  Bounded(r, "max_staleness", &max_staleness, 0);
  Bounded(r, "max_batch", &max_batch, 1);
  r.Optional("page_size", &page_size);
  Bounded(r, "cache_pages", &cache_pages, 0);
  Bounded(r, "prefill_chunk", &prefill_chunk, 1);
  Bounded(r, "prompts_per_lease", &prompts_per_lease, 1);
  Bounded(r, "lease_seconds", &lease_seconds, 1);
  Bounded(r, "stall_seconds", &stall_seconds, 1);
  r.Optional("listen", &listen);
  r.Optional("tls_certificate", &tls_certificate);
  r.Optional("tls_key", &tls_key);
  r.Optional("tls_ca", &tls_ca);
  r.Optional("absorb", &absorb);
  if (lease_seconds >= stall_seconds) {
    r.Fail("lease_seconds",
           fmt::format("must be below stall_seconds ({}): a worker that hangs would end the run "
                       "before another gets its work",
                       stall_seconds));
  }
  if (lag != 0 && lag != 1) r.Fail("lag", "is 0 (synchronous) or 1 (one rollout behind)");
  if (page_size < 1 || (64 % page_size != 0 && page_size % 64 != 0)) {
    r.Fail("page_size", "divides 64 or is a multiple of it");
  }
  if (colocated && lag + max_staleness > 0) {
    r.Fail("colocated",
           "means that learner and workers take turns: they cannot work at the same time "
           "as lag: 1 and max_staleness have them; set both to 0");
  }
  if (lag == 1 && max_staleness > 0) {
    r.Fail("max_staleness", "is another mode than lag: 1; set one of the two");
  }
}

bool RolloutConfig::own_certificate() const {
  return tls_certificate.empty() && !IsLoopback(listen);
}

void RolloutConfig::CheckCache(int64_t tokens, int64_t context, const std::string& where) const {
  int64_t longest = std::min(tokens, context);
  int64_t needed = PagesForSequence(longest, page_size);
  Check<ConfigError>(cache_pages == 0 || needed <= cache_pages,
                     "{}: up to {} tokens need a KV cache of {} pages of {} tokens, and "
                     "rollout.cache_pages is {}; set it to at least {}, or to 0",
                     where, longest, needed, page_size, cache_pages, needed);
}

namespace {

void ReadDevice(ConfigReader& r, TrainConfig* train) {
  std::string device = "cpu";
  r.Optional("device", &device);
  train->numerics = static_cast<Numerics>(r.OneOf("numerics", runtime::NumericsNames(), 0));
  r.Optional("fp8", &train->fp8);
  r.Optional("keep_fp8", &train->keep_fp8);
  if (device != "cpu" && device != "cuda") r.Fail("device", "must be cpu or cuda");
  train->device = device == "cuda" ? Device::Type::kCuda : Device::Type::kCpu;
  if (train->fp8 && train->numerics == Numerics::kBatchInvariant) {
    r.Fail("fp8", "is not batch invariant; it needs numerics: fast");
  }
  if (train->fp8 && train->dtype == DType::kF64) r.Fail("fp8", "needs dtype f32 or bf16");
}

}  // namespace

void TrainConfig::Read(ConfigReader& r) {
  const std::vector<DType> dtypes = {DType::kF32, DType::kBF16, DType::kF64};
  dtype = dtypes[static_cast<size_t>(r.OneOf("dtype", {"f32", "bf16", "f64"}, 0))];
  Bounded(r, "threads", &threads, 1);
  ReadDevice(r, this);
  r.Optional("activation_checkpointing", &activation_checkpointing);
  Bounded(r, "deadline_seconds", &deadline_seconds, 1);
  Bounded(r, "keep_last", &keep_last, 1);
  Bounded(r, "keep_every", &keep_every, 0);
  r.Optional("asynchronous_checkpoints", &asynchronous_checkpoints);
}

namespace {

// Each source draws from its own stream, named by the stage and the key.
uint64_t SourceSeed(uint64_t seed, const std::string& stage, std::string_view key) {
  return RandomStream{seed, HashName(stage), HashName(key)}.Bits(0);
}

void ReadUntil(ConfigReader& r, StageConfig* s) {
  if (!r.Has("until")) return;
  ConfigReader& u = r.Map("until");
  UntilConfig until;
  u.Required("suite", &until.suite);
  u.Required("metric", &until.metric);
  u.Required("at_least", &until.at_least);
  Bounded(u, "every", &until.every, 1);
  s->until = until;
}

void ReadPolicyLoss(ConfigReader& r, PolicyLossConfig* c) {
  c->ratio = static_cast<PolicyLossConfig::Ratio>(r.OneOf("ratio", {"token", "sequence"}, 0));
  Bounded(r, "clip_low", &c->clip_low, 0);
  Bounded(r, "clip_high", &c->clip_high, 0);
  Bounded(r, "kl_coefficient", &c->kl_coefficient, 0);
  r.Optional("entropy_coefficient", &c->entropy_coefficient);
  Bounded(r, "importance_cap", &c->importance_cap, 0);
}

// Rewards are those of rules and those of `models`.
std::map<std::string, double> ReadRewards(ConfigReader& r,
                                          const std::map<std::string, std::string>& models) {
  std::map<std::string, double> weights;
  std::vector<std::string> known = RewardNames();
  for (const auto& [name, stage] : models) known.push_back(name);
  for (const std::string& name : r.Keys()) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      r.Fail(name, fmt::format("is no reward; did you mean '{}'? The rewards are {}",
                               runtime::NearestWord(name, known), fmt::format("{}", [&] {
                                 std::string all;
                                 for (auto& n : known) all += (all.empty() ? "" : ", ") + n;
                                 return all;
                               }())));
    }
    r.Required(name, &weights[name]);
  }
  if (weights.empty()) r.Fail("", "name at least one reward, e.g. {accuracy: 1, format: 1}");
  return weights;
}

std::map<std::string, std::string> ReadRewardModels(ConfigReader& r) {
  std::map<std::string, std::string> stages;
  const auto& rules = RewardNames();
  for (const std::string& name : r.Keys()) {
    bool taken = std::find(rules.begin(), rules.end(), name) != rules.end();
    if (taken) r.Fail(name, "is the name of a rule's reward: choose another for the model's");
    r.Required(name, &stages[name]);
  }
  return stages;
}

void ReadGrpo(ConfigReader& r, uint64_t seed, StageConfig* s) {
  GrpoConfig& g = s->grpo;
  if (!r.Has("prompts")) r.Fail("prompts", "is missing: which prompts to sample from");
  g.prompts = data::MakeProblemSource(r.Map("prompts"), SourceSeed(seed, s->name, "prompts"));
  if (r.Has("general_prompts")) {
    g.general_prompts = data::MakeProblemSource(r.Map("general_prompts"),
                                                SourceSeed(seed, s->name, "general_prompts"));
    Bounded(r, "general_last_steps", &g.general_last_steps, 0);
    Bounded(r, "general_share", &g.general_share, 0, 1);
    if (g.general_last_steps == 0) {
      r.Fail("general_prompts", "would never be used: set general_last_steps above 0");
    }
  }
  r.Optional("group_size", &g.group_size);
  Bounded(r, "prompts_per_rollout", &g.prompts_per_rollout, 1);
  r.Optional("minibatches", &g.minibatches);
  Bounded(r, "reference_every", &g.reference_every, 0);
  g.reward_models = ReadRewardModels(r.Map("reward_models"));
  g.reward = ReadRewards(r.Map("reward"), g.reward_models);
  r.Optional("shuffle_rewards", &g.shuffle_rewards);
  g.advantage = static_cast<AdvantageKind>(r.OneOf("advantage", AdvantageNames(), 0));
  ReadPolicyLoss(r.Map("loss"), &g.loss);
  g.average =
      static_cast<GrpoConfig::Average>(r.OneOf("average", {"sequence", "token", "max_length"}, 0));
  r.Optional("dynamic_sampling", &g.dynamic_sampling);
  Bounded(r, "dynamic_sampling_rounds", &g.dynamic_sampling_rounds, 1);
  Bounded(r, "overlong_buffer", &g.overlong_buffer, 0, 1);
  r.Optional("replay_routing", &g.replay_routing);
  g.reference =
      static_cast<GrpoConfig::Place>(r.OneOf("reference", {"learner", "pool", "host"}, 0));
  g.scoring = static_cast<GrpoConfig::Place>(r.OneOf("scoring", {"learner", "pool"}, 0));
  Bounded(r, "max_unusable", &g.max_unusable, 0, 1);
  g.sampling.Read(r.Map("sampling"));
  g.loss.temperature = g.sampling.sampling.temperature;
  if (g.group_size < 2) r.Fail("group_size", "must be at least 2: advantages compare samples");
  if (g.minibatches < 1 || (g.prompts_per_rollout * g.group_size) % g.minibatches != 0) {
    r.Fail("minibatches", fmt::format("{} does not divide the {} samples of a rollout",
                                      g.minibatches, g.prompts_per_rollout * g.group_size));
  }
  if (g.sampling.sampling.temperature <= 0) {
    r.Map("sampling").Fail("temperature", "must be above 0 for RL: greedy samples carry no signal");
  }
  if (g.sampling.sampling.top_p < 1 || g.sampling.sampling.top_k > 0) {
    r.Map("sampling")
        .Fail(g.sampling.sampling.top_p < 1 ? "top_p" : "top_k",
              "truncated sampling is refused for RL: recorded log-probabilities are "
              "of the whole distribution");
  }
}

void ReadRejection(ConfigReader& r, uint64_t seed, StageConfig* s) {
  RejectionConfig& c = s->rejection;
  if (!r.Has("prompts")) r.Fail("prompts", "is missing: which prompts to sample from");
  c.prompts = data::MakeProblemSource(r.Map("prompts"), SourceSeed(seed, s->name, "prompts"));
  Bounded(r, "problems", &c.problems, 1);
  Bounded(r, "samples_per_problem", &c.samples_per_problem, 1);
  Bounded(r, "keep_per_problem", &c.keep_per_problem, 1);
  r.Optional("keep_unfinished", &c.keep_unfinished);
  r.Optional("drop_mixed_language", &c.drop_mixed_language);
  r.Optional("drop_code_blocks", &c.drop_code_blocks);
  Bounded(r, "max_paragraph", &c.max_paragraph, 1);
  Bounded(r, "story_hindsight", &c.story_hindsight, 0);
  c.sampling.Read(r.Map("sampling"));
}

void ReadSupervised(ConfigReader& r, uint64_t seed, StageConfig* s) {
  ReadUntil(r, s);
  if (r.Has("data")) {
    s->data = data::MakeExampleSource(r.Map("data"), SourceSeed(seed, s->name, "data"));
  }
  if (r.Has("heldout")) {
    s->heldout = data::MakeExampleSource(r.Map("heldout"), SourceSeed(seed, s->name, "heldout"));
  }
  Bounded(r, "heldout_every", &s->heldout_every, 1);
  r.Optional("samples", &s->samples);
  if (!s->data && s->samples.empty()) r.Fail("data", "is missing: what to train on");
  const bool endless = s->data && s->data->size() < 0;
  if (endless && !s->samples.empty()) {
    r.Fail("data", "has no end, and cannot be joined with samples: give it a `count`");
  }
  if (s->steps == 0 && endless) {
    r.Fail("steps", "is missing: generated data has no end, so an epoch has none either");
  }
}

void ReadRewardModel(ConfigReader& r, uint64_t seed, StageConfig* s) {
  RewardModelConfig& c = s->reward_model;
  if (!r.Has("pairs")) r.Fail("pairs", "is missing: the preferences to learn from");
  c.pairs = data::MakePreferenceSource(r.Map("pairs"), SourceSeed(seed, s->name, "pairs"));
  if (r.Has("heldout_pairs")) {
    c.heldout_pairs = data::MakePreferenceSource(r.Map("heldout_pairs"),
                                                 SourceSeed(seed, s->name, "heldout_pairs"));
  }
  Bounded(r, "heldout_every", &s->heldout_every, 1);
  c.mode = static_cast<PreferenceMode>(r.OneOf("mode", {"pairwise", "pointwise"}, 0));
  c.scores = static_cast<RewardModelConfig::Scores>(r.OneOf("scores", {"answer", "response"}, 1));
  Bounded(r, "pairs_per_step", &c.pairs_per_step, 1);
  if (s->steps == 0 && c.pairs->size() < 0) {
    r.Fail("steps", "is missing: generated data has no end, so an epoch has none either");
  }
}

// What all stages that train have.
void ReadTraining(ConfigReader& r, int64_t context, StageConfig* s) {
  Bounded(r, "steps", &s->steps, 0);
  if (s->kind != StageKind::kGrpo) Bounded(r, "epochs", &s->epochs, 1);
  Bounded(r, "save_every", &s->save_every, 1);
  if (r.Has("optimizer")) s->optimizer.Read(r.Map("optimizer"));
  s->lr.Read(r.Map("lr"));
  s->batch.Read(r.Map("batch"), Supervised(s->kind), s->kind != StageKind::kGrpo);
  // One token more than the context: a sequence's last token is only predicted.
  if (s->batch.max_length == 0) s->batch.max_length = std::min(s->batch.pack_tokens, context + 1);
}

StageConfig ReadStage(ConfigReader& r, uint64_t seed, const parallel::AdamWConfig& optimizer,
                      int64_t context) {
  StageConfig s;
  r.Required("name", &s.name);
  CheckName(r, s.name);
  if (s.name == "init") r.Fail("name", "'init' is what stages start from that follow no other");
  s.where = r.Where("name");
  s.kind = static_cast<StageKind>(r.OneOf("kind", StageKindNames(), -1));
  s.from = "init";
  r.Optional("from", &s.from);
  s.optimizer = optimizer;
  if (Trains(s.kind)) ReadTraining(r, context, &s);
  switch (s.kind) {
    case StageKind::kGrpo:
      if (s.steps == 0) r.Fail("steps", "is missing");
      ReadGrpo(r, seed, &s);
      break;
    case StageKind::kRejectionSampling:
      ReadRejection(r, seed, &s);
      break;
    case StageKind::kRewardModel:
      ReadRewardModel(r, seed, &s);
      break;
    case StageKind::kEvaluate:
    case StageKind::kExport:
      break;
    default:
      ReadSupervised(r, seed, &s);
  }
  return s;
}

void ReadEvaluation(ConfigReader& r, RunConfig* c) {
  c->evaluate_after_every_stage = r.OneOf("after", {"every_stage", "never"}, 0) == 0;
  for (ConfigReader* suite : r.List("suites")) {
    EvaluationSuite e;
    suite->Required("name", &e.name);
    CheckName(*suite, e.name);
    e.where = suite->Where("name");
    for (const EvaluationSuite& other : c->suites) {
      if (other.name == e.name) suite->Fail("name", "is another suite's: scores go by it");
    }
    suite->Optional("after_stages", &e.after_stages);
    suite->Optional("samples", &e.samples);
    const std::string stream = "evaluate/" + e.name;
    if (suite->Has("text") || !e.samples.empty()) {
      if (suite->Has("text") && !e.samples.empty()) {
        suite->Fail("samples", "stands beside 'text': a suite has one of them");
      }
      if (suite->Has("text")) {
        e.text = data::MakeExampleSource(suite->Map("text"), SourceSeed(c->seed, stream, "text"));
      }
      e.batch.Read(suite->Map("batch"), true, false);
    } else {
      e.problems =
          data::MakeProblemSource(suite->Map("problems"), SourceSeed(c->seed, stream, "problems"));
      Bounded(*suite, "count", &e.count, 1);
      suite->Optional("greedy", &e.greedy);
      suite->Optional("sampled", &e.sampled);
      Bounded(*suite, "samples_per_problem", &e.samples_per_problem, 1);
      e.sampling.Read(suite->Map("sampling"));
    }
    c->suites.push_back(std::move(e));
  }
}

}  // namespace

bool EvaluationSuite::After(const std::string& stage) const {
  return after_stages.empty() ||
         std::find(after_stages.begin(), after_stages.end(), stage) != after_stages.end();
}

const StageConfig* RunConfig::FindStage(const std::string& stage) const {
  for (const StageConfig& s : stages) {
    if (s.name == stage) return &s;
  }
  return nullptr;
}

bool RunConfig::HasText(const EvaluationSuite& suite, const StageConfig& stage) const {
  const StageConfig* wrote = FindStage(suite.samples);
  return wrote == nullptr || wrote < &stage;
}

std::vector<int32_t> SamplingConfig::StopIds(const data::Tokenizer& tokenizer) const {
  std::vector<int32_t> ids = {tokenizer.eos_id()};
  for (const std::string& name : stop_tokens) {
    ids.push_back(tokenizer.SpecialId(name));
    Check<ConfigError>(ids.back() >= 0, "sampling.stop_tokens: the tokenizer has no token '{}'",
                       name);
  }
  return ids;
}

data::DataLoader::Options LoaderOptions(const RunConfig& config, const StageConfig& stage,
                                        int dp_rank) {
  data::DataLoader::Options o;
  o.packs = stage.batch.packs;
  o.pack_tokens = stage.batch.pack_tokens;
  o.max_length = stage.batch.max_length;
  o.seed = RandomStream{config.seed, HashName(stage.name), HashName("order")}.Bits(0);
  o.dp = config.mesh.dp;
  o.dp_rank = dp_rank;
  o.repeat = stage.steps > 0;
  o.epochs = stage.epochs;
  return o;
}

data::DataLoader::Options TextOptions(const RunConfig& config, const EvaluationSuite& suite,
                                      int dp_rank) {
  data::DataLoader::Options o;
  o.packs = suite.batch.packs;
  o.pack_tokens = suite.batch.pack_tokens;
  o.max_length = config.model.max_position_embeddings + 1;
  o.drop_too_long = true;
  o.with_end = false;  // a base model may have been trained with another end of text, or none
  o.repeat = false;
  o.seed = RandomStream{config.seed, HashName(suite.name), HashName("text")}.Bits(0);
  o.dp = config.mesh.dp;
  o.dp_rank = dp_rank;
  return o;
}

std::shared_ptr<data::ExampleSource> ReadSamples(const std::string& path) {
  ConfigReader reader(Config::FromString(
      nlohmann::json{{"jsonl", path}, {"completion", "completion"}}.dump(), path));
  return data::MakeExampleSource(reader, 0);
}

RunConfig ReadRunConfig(const Config& config) {
  RunConfig c;
  ConfigReader root(config);
  ConfigReader& run = root.Map("run");
  run.Required("name", &c.name);
  run.Optional("dir", &c.dir);
  int64_t seed = 1;
  run.Optional("seed", &seed);
  c.seed = static_cast<uint64_t>(seed);
  root.Optional("tokenizer", &c.tokenizer);
  root.Optional("special_tokens", &c.special_tokens);
  ConfigReader& model = root.Map("model");
  model.Optional("hf", &c.hf);
  if (c.hf.empty()) {
    c.model.Read(model);
  } else {
    const std::string file = c.hf + "/config.json";
    Check<ConfigError>(
        runtime::LocalFileSystem().Exists(file),
        "{}: there is no {}: put the model's Hugging Face folder there, or name it by "
        "--set model.hf=FOLDER",
        model.Where("hf"), file);
    c.model = model::ModelConfig::FromHuggingFace(file);
    c.model.ReadBeside(model);
  }
  if (c.tokenizer == "hf") {
    Check<ConfigError>(!c.hf.empty(), "{}: 'hf' is the folder of model.hf, which is not set",
                       root.Where("tokenizer"));
    c.tokenizer = c.hf;
  }
  c.model.Validate(root.Where("model"));
  c.mesh.Read(root.Map("mesh"));
  c.pipeline.Read(root.Map("pipeline"));
  c.train.Read(root.Map("train"));
  c.rollout.Read(root.Map("rollout"));
  parallel::AdamWConfig optimizer;
  optimizer.Read(root.Map("optimizer"));
  for (ConfigReader* stage : root.List("stages")) {
    c.stages.push_back(ReadStage(*stage, c.seed, optimizer, c.model.max_position_embeddings));
  }
  if (c.stages.empty()) root.Fail("stages", "is missing or empty: name at least one stage");
  ReadEvaluation(root.Map("evaluate"), &c);
  root.Finish();
  CheckReferences(c);
  c.resolved_yaml = config.ToYaml();
  return c;
}

RunConfig LoadRunConfig(const std::string& path, const std::vector<std::string>& overrides) {
  Config config = Config::FromFile(path);
  for (const std::string& assignment : overrides) config.Override(assignment);
  return ReadRunConfig(config);
}

}  // namespace hone::rl
