#include "rl/run_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <set>

#include "kernels/token_logprob/token_logprob.h"
#include "rl/reward/verifier.h"
#include "rl/rollout/inference_engine.h"
#include "rl/rollout/own_certificate.h"
#include "runtime/file_system.h"
#include "runtime/philox.h"

namespace hone::rl {

const std::vector<std::string>& StageKindNames() {
  static const std::vector<std::string> names = {
      "pretrain",           "sft",     "reward_model", "grpo",
      "rejection_sampling", "distill", "evaluate",     "export"};
  return names;
}

bool Trains(StageKind kind) {
  return kind != StageKind::kRejectionSampling && kind != StageKind::kEvaluate &&
         kind != StageKind::kExport;
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
  r.Optional("warmup", &warmup);
  r.Optional("final_ratio", &final_ratio);
  if (peak <= 0) r.Fail("peak", "must be above 0");
}

void BatchConfig::Read(ConfigReader& r) {
  r.Optional("packs", &packs);
  r.Optional("pack_tokens", &pack_tokens);
  r.Optional("max_length", &max_length);
  if (packs < 1) r.Fail("packs", "must be at least 1");
  if (pack_tokens < 2) r.Fail("pack_tokens", "must be at least 2");
  if (max_length > pack_tokens) r.Fail("max_length", "is longer than pack_tokens");
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
  r.Optional("max_new_tokens", &max_new_tokens);
  r.Optional("temperature", &sampling.temperature);
  r.Optional("top_p", &sampling.top_p);
  r.Optional("top_k", &sampling.top_k);
  r.Optional("stop_strings", &stop_strings);
  r.Optional("stop_tokens", &stop_tokens);
  if (r.Has("environment")) environment.Read(r.Map("environment"));
  if (max_new_tokens < 1) r.Fail("max_new_tokens", "must be at least 1");
  const double t = sampling.temperature;
  if (t != 0 && (t < kernels::kLeastTemperature || t > kernels::kGreatestTemperature)) {
    r.Fail("temperature", fmt::format("must be 0 (greedy) or lie in [{}, {}]",
                                      kernels::kLeastTemperature, kernels::kGreatestTemperature));
  }
  if (sampling.top_p <= 0 || sampling.top_p > 1) r.Fail("top_p", "must lie in (0, 1]");
  if (sampling.top_k < 0) r.Fail("top_k", "must not be negative");
}

void RolloutConfig::Read(ConfigReader& r) {
  r.Optional("workers", &workers);
  r.Optional("threads", &threads);
  device = static_cast<Device::Type>(r.OneOf("device", {"cpu", "cuda"}, 0));
  if (r.Has("numerics")) {
    numerics = static_cast<Numerics>(r.OneOf("numerics", runtime::NumericsNames(), -1));
  }
  r.Optional("allow_logprob_gap", &allow_logprob_gap);
  publish = static_cast<Publish>(r.OneOf("publish", {"host", "device"}, 0));
  r.Optional("colocated", &colocated);
  r.Optional("verifier_helpers", &verifier_helpers);
  r.Optional("lag", &lag);
  r.Optional("max_staleness", &max_staleness);
  r.Optional("max_batch", &max_batch);
  r.Optional("page_size", &page_size);
  r.Optional("cache_pages", &cache_pages);
  r.Optional("prefill_chunk", &prefill_chunk);
  r.Optional("prompts_per_lease", &prompts_per_lease);
  r.Optional("lease_seconds", &lease_seconds);
  r.Optional("stall_seconds", &stall_seconds);
  r.Optional("listen", &listen);
  r.Optional("tls_certificate", &tls_certificate);
  r.Optional("tls_key", &tls_key);
  r.Optional("tls_ca", &tls_ca);
  r.Optional("absorb", &absorb);
  const std::pair<const char*, int64_t> from_1[] = {{"threads", threads},
                                                    {"verifier_helpers", verifier_helpers},
                                                    {"max_batch", max_batch},
                                                    {"prefill_chunk", prefill_chunk},
                                                    {"prompts_per_lease", prompts_per_lease},
                                                    {"lease_seconds", lease_seconds},
                                                    {"stall_seconds", stall_seconds}};
  for (const auto& [key, value] : from_1) {
    if (value < 1) r.Fail(key, "must be at least 1");
  }
  if (lease_seconds >= stall_seconds) {
    r.Fail("lease_seconds",
           fmt::format("must be below stall_seconds ({}): a worker that hangs would end the run "
                       "before another gets its work",
                       stall_seconds));
  }
  if (workers < 0) r.Fail("workers", "must not be negative");
  if (max_staleness < 0) r.Fail("max_staleness", "must not be negative");
  if (cache_pages < 0) r.Fail("cache_pages", "must not be negative; 0: enough for max_batch");
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
  std::string type{runtime::DTypeName(dtype)};
  r.Optional("dtype", &type);
  dtype = runtime::DTypeFromName(type);
  r.Optional("threads", &threads);
  ReadDevice(r, this);
  r.Optional("activation_checkpointing", &activation_checkpointing);
  r.Optional("deadline_seconds", &deadline_seconds);
  r.Optional("keep_last", &keep_last);
  r.Optional("keep_every", &keep_every);
  r.Optional("asynchronous_checkpoints", &asynchronous_checkpoints);
  if (threads < 1) r.Fail("threads", "must be at least 1");
  if (keep_last < 1) r.Fail("keep_last", "must be at least 1");
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
  u.Optional("every", &until.every);
  if (until.every < 1) u.Fail("every", "must be at least 1");
  s->until = until;
}

void ReadPolicyLoss(ConfigReader& r, PolicyLossConfig* c) {
  c->ratio = static_cast<PolicyLossConfig::Ratio>(r.OneOf("ratio", {"token", "sequence"}, 0));
  r.Optional("clip_low", &c->clip_low);
  r.Optional("clip_high", &c->clip_high);
  r.Optional("kl_coefficient", &c->kl_coefficient);
  r.Optional("entropy_coefficient", &c->entropy_coefficient);
  r.Optional("importance_cap", &c->importance_cap);
  if (c->clip_low < 0) r.Fail("clip_low", "must not be negative");
  if (c->clip_high < 0) r.Fail("clip_high", "must not be negative");
  if (c->kl_coefficient < 0) r.Fail("kl_coefficient", "must not be negative");
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
  }
  r.Optional("group_size", &g.group_size);
  r.Optional("prompts_per_rollout", &g.prompts_per_rollout);
  r.Optional("minibatches", &g.minibatches);
  r.Optional("reference_every", &g.reference_every);
  g.reward_models = ReadRewardModels(r.Map("reward_models"));
  g.reward = ReadRewards(r.Map("reward"), g.reward_models);
  r.Optional("shuffle_rewards", &g.shuffle_rewards);
  g.advantage = static_cast<AdvantageKind>(r.OneOf("advantage", AdvantageNames(), 0));
  ReadPolicyLoss(r.Map("loss"), &g.loss);
  g.average =
      static_cast<GrpoConfig::Average>(r.OneOf("average", {"sequence", "token", "max_length"}, 0));
  r.Optional("dynamic_sampling", &g.dynamic_sampling);
  r.Optional("dynamic_sampling_rounds", &g.dynamic_sampling_rounds);
  if (g.dynamic_sampling_rounds < 1) r.Fail("dynamic_sampling_rounds", "must be at least 1");
  r.Optional("overlong_buffer", &g.overlong_buffer);
  r.Optional("replay_routing", &g.replay_routing);
  g.reference =
      static_cast<GrpoConfig::Place>(r.OneOf("reference", {"learner", "pool", "host"}, 0));
  g.scoring = static_cast<GrpoConfig::Place>(r.OneOf("scoring", {"learner", "pool"}, 0));
  r.Optional("general_last_steps", &g.general_last_steps);
  r.Optional("general_share", &g.general_share);
  r.Optional("max_unusable", &g.max_unusable);
  g.sampling.Read(r.Map("sampling"));
  g.loss.temperature = g.sampling.sampling.temperature;
  if (g.group_size < 2) r.Fail("group_size", "must be at least 2: advantages compare samples");
  if (g.prompts_per_rollout < 1) r.Fail("prompts_per_rollout", "must be at least 1");
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
  r.Optional("problems", &c.problems);
  r.Optional("samples_per_problem", &c.samples_per_problem);
  r.Optional("keep_per_problem", &c.keep_per_problem);
  r.Optional("keep_unfinished", &c.keep_unfinished);
  r.Optional("drop_mixed_language", &c.drop_mixed_language);
  r.Optional("drop_code_blocks", &c.drop_code_blocks);
  r.Optional("max_paragraph", &c.max_paragraph);
  r.Optional("story_hindsight", &c.story_hindsight);
  c.sampling.Read(r.Map("sampling"));
  if (c.samples_per_problem < 1) r.Fail("samples_per_problem", "must be at least 1");
  if (c.keep_per_problem < 1) r.Fail("keep_per_problem", "must be at least 1");
  if (c.story_hindsight < 0) r.Fail("story_hindsight", "must not be negative");
}

void ReadSupervised(ConfigReader& r, uint64_t seed, StageConfig* s) {
  if (r.Has("data")) {
    s->data = data::MakeExampleSource(r.Map("data"), SourceSeed(seed, s->name, "data"));
  }
  if (r.Has("heldout")) {
    s->heldout = data::MakeExampleSource(r.Map("heldout"), SourceSeed(seed, s->name, "heldout"));
  }
  r.Optional("heldout_every", &s->heldout_every);
  if (s->heldout_every < 1) r.Fail("heldout_every", "must be at least 1");
  r.Optional("samples", &s->samples);
  if (!s->data && s->samples.empty()) r.Fail("data", "is missing: what to train on");
  if (s->steps == 0 && s->data && s->data->size() < 0) {
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
  r.Optional("heldout_every", &s->heldout_every);
  c.mode = static_cast<PreferenceMode>(r.OneOf("mode", {"pairwise", "pointwise"}, 0));
  c.scores = static_cast<RewardModelConfig::Scores>(r.OneOf("scores", {"answer", "response"}, 1));
  r.Optional("pairs_per_step", &c.pairs_per_step);
  if (c.pairs_per_step < 1) r.Fail("pairs_per_step", "must be at least 1");
  if (s->heldout_every < 1) r.Fail("heldout_every", "must be at least 1");
  if (s->steps == 0 && c.pairs->size() < 0) {
    r.Fail("steps", "is missing: generated data has no end, so an epoch has none either");
  }
}

StageConfig ReadStage(ConfigReader& r, uint64_t seed, const parallel::AdamWConfig& optimizer,
                      int64_t context) {
  StageConfig s;
  r.Required("name", &s.name);
  s.where = r.Where("name");
  s.kind = static_cast<StageKind>(r.OneOf("kind", StageKindNames(), -1));
  s.from = "init";
  r.Optional("from", &s.from);
  r.Optional("steps", &s.steps);
  r.Optional("epochs", &s.epochs);
  r.Optional("save_every", &s.save_every);
  if (s.steps < 0) r.Fail("steps", "must not be negative");
  if (s.save_every < 1) r.Fail("save_every", "must be at least 1");
  ReadUntil(r, &s);
  s.optimizer = optimizer;
  if (r.Has("optimizer")) s.optimizer.Read(r.Map("optimizer"));
  if (Trains(s.kind)) {
    s.lr.Read(r.Map("lr"));
    if (r.Has("batch")) s.batch.Read(r.Map("batch"));
    // One token more than the context: a sequence's last token is only predicted.
    if (s.batch.max_length == 0) s.batch.max_length = std::min(s.batch.pack_tokens, context + 1);
  }
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
      if (suite->Has("batch")) e.batch.Read(suite->Map("batch"));
    } else {
      e.problems =
          data::MakeProblemSource(suite->Map("problems"), SourceSeed(c->seed, stream, "problems"));
      suite->Optional("count", &e.count);
      if (e.count < 1) suite->Fail("count", "must be at least 1");
      suite->Optional("greedy", &e.greedy);
      suite->Optional("sampled", &e.sampled);
      suite->Optional("samples_per_problem", &e.samples_per_problem);
      if (e.samples_per_problem < 1) suite->Fail("samples_per_problem", "must be at least 1");
      e.sampling.Read(suite->Map("sampling"));
    }
    c->suites.push_back(std::move(e));
  }
}

// Every `from` and `samples` names an earlier stage (so there can be no cycle), "init", or a
// folder.
void CheckReferences(const RunConfig& c) {
  std::set<std::string> earlier;
  std::vector<std::string> names;
  for (const StageConfig& s : c.stages) names.push_back(s.name);
  auto need = [&](const StageConfig& s, const std::string& key, const std::string& name) {
    if (earlier.count(name)) return;
    bool later = std::find(names.begin(), names.end(), name) != names.end();
    std::string nearest = runtime::NearestWord(name, names);
    throw ConfigError(fmt::format(
        "{}: stage '{}': {}: '{}' {}", s.where, s.name, key, name,
        later ? "comes later or is the stage itself: stages run in order, so this would be a cycle"
              : "is no stage" + (nearest.empty() ? "" : "; did you mean '" + nearest + "'?")));
  };
  for (const EvaluationSuite& e : c.suites) {
    const StageConfig* wrote = e.samples.empty() ? nullptr : c.FindStage(e.samples);
    Check<ConfigError>(
        e.samples.empty() || (wrote && wrote->kind == StageKind::kRejectionSampling),
        "evaluate: suite '{}': samples: no stage of kind rejection_sampling is named '{}'", e.name,
        e.samples);
  }
  for (const StageConfig& s : c.stages) {
    Check<ConfigError>(!earlier.count(s.name), "{}: two stages are named '{}'", s.where, s.name);
    if (const StageConfig* shared = c.FindStage(s.name + "-reference")) {
      Check<ConfigError>(s.kind != StageKind::kGrpo,
                         "{}: stage '{}': checkpoints/{} is where stage '{}' keeps its reference; "
                         "choose another name",
                         shared->where, shared->name, shared->name, s.name);
    }
    if (s.from != "init" && s.from.find('/') == std::string::npos) need(s, "from", s.from);
    for (const auto& [reward, model] : s.grpo.reward_models) {
      need(s, "reward_models." + reward, model);
      Check<ConfigError>(c.FindStage(model)->kind == StageKind::kRewardModel,
                         "{}: stage '{}': reward_models.{}: stage '{}' trains no reward model",
                         s.where, s.name, reward, model);
    }
    const StageConfig* from = c.FindStage(s.from);
    Check<ConfigError>(s.kind == StageKind::kRewardModel || from == nullptr ||
                           from->kind != StageKind::kRewardModel,
                       "{}: stage '{}': from: '{}' is a reward model, which no policy starts from",
                       s.where, s.name, s.from);
    for (const std::string& name : s.samples) {
      if (name.find('/') == std::string::npos) need(s, "samples", name);
    }
    if (s.until) {
      bool known = std::any_of(c.suites.begin(), c.suites.end(),
                               [&](const EvaluationSuite& e) { return e.name == s.until->suite; });
      Check<ConfigError>(known, "{}: stage '{}': until.suite: no evaluation suite is named '{}'",
                         s.where, s.name, s.until->suite);
    }
    earlier.insert(s.name);
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
