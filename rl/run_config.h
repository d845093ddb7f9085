// A whole run as one file: model, layout, rollout pool, stages in order, evaluation. Documented key
// by key in docs/config.md; everything wrong is found here, before anything starts.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/packing.h"
#include "data/task.h"
#include "kernels/sampling/sampling.h"
#include "model/model_config.h"
#include "parallel/mesh.h"
#include "parallel/train_engine.h"
#include "rl/advantage.h"
#include "rl/policy_loss.h"
#include "rl/reward/turn_environment.h"
#include "rl/reward_model_loss.h"
#include "runtime/config.h"

namespace hone::rl {

enum class StageKind {
  kPretrain,
  kSft,
  kRewardModel,
  kGrpo,
  kRejectionSampling,
  kDistill,
  kEvaluate,
  kExport
};
const std::vector<std::string>& StageKindNames();
bool Supervised(StageKind kind);  // cross-entropy on examples
// Whether a stage of this kind ends with weights of its own.
bool Trains(StageKind kind);
// Whether there is a policy behind it for suites to measure.
bool Measured(StageKind kind);

struct LearningRate {
  enum class Schedule { kConstant, kCosine, kLinear };
  double peak = 1e-3;
  Schedule schedule = Schedule::kCosine;
  int64_t warmup = 0;        // steps from 0 to peak
  double final_ratio = 0.1;  // the last step's rate over the peak
  // Of step `step` (from 1) of `total`.
  double At(int64_t step, int64_t total) const;
  void Read(ConfigReader& reader);
};

struct BatchConfig {
  int64_t packs = 16;  // a step, over all ranks
  int64_t pack_tokens = 1024;
  int64_t max_length = 0;  // of one sequence; 0: as long as pack and context allow
  // Of the keys that not every batch has, those that this one does.
  void Read(ConfigReader& reader, bool with_packs, bool with_max_length);
  // ConfigError, beginning with `where`, when what is drawn after a prompt cannot be learned from.
  void CheckPack(int64_t prompt_tokens, int64_t max_new_tokens, const std::string& where) const;
};

// A stage may end on a metric of an evaluation suite instead of a number of steps.
struct UntilConfig {
  std::string suite, metric;  // "skill", "accuracy"
  double at_least = 0;
  int64_t every = 50;  // steps between looks
};

struct SamplingConfig {
  int64_t max_new_tokens = 256;
  kernels::SamplingParams sampling;
  std::vector<std::string> stop_strings;
  std::vector<std::string> stop_tokens;  // by name, beside the tokenizer's end of text
  EnvironmentConfig environment;         // that answers calls in the completion
  void Read(ConfigReader& reader);
  // Of the end of text and `stop_tokens`. ConfigError for a token that the tokenizer does not have.
  std::vector<int32_t> StopIds(const data::Tokenizer& tokenizer) const;
};

struct GrpoConfig {
  std::shared_ptr<data::ProblemSource> prompts, general_prompts;
  int64_t group_size = 16;
  int64_t prompts_per_rollout = 32;
  int64_t minibatches = 1;                           // optimizer steps a rollout
  int64_t reference_every = 400;                     // steps; 0: never refreshed
  std::map<std::string, double> reward;              // weight of each named reward
  std::map<std::string, std::string> reward_models;  // of general prompts: reward's name → stage
  bool shuffle_rewards = false;  // a control: rewards permuted over the batch, carries no signal
  AdvantageKind advantage = AdvantageKind::kGrpo;
  PolicyLossConfig loss;
  enum class Average { kSequence, kToken, kMaxLength };  // 1/(G|o|); 1/Σ|o|; 1/(G L_max)
  Average average = Average::kSequence;
  bool dynamic_sampling = false;  // DAPO: groups without variance are dropped and drawn anew
  int64_t dynamic_sampling_rounds = 4;
  double overlong_buffer = 0;  // DAPO's soft punishment: share of max_new_tokens; 0: none
  bool replay_routing = false;
  // Where frozen models are kept and read: beside the policy on the learner ranks; by the workers
  // from pinned weights, through leases; or, the reference only, in the learner's host memory, and
  // on its device while it reads.
  enum class Place { kLearner, kPool, kHost };
  Place reference = Place::kLearner, scoring = Place::kLearner;  // scoring: reward models
  int64_t general_last_steps = 0;  // general prompts take part in the last n steps only
  double general_share = 0.5;      // of the prompts, while they do
  SamplingConfig sampling;
  double max_unusable = 0.5;  // share of samples neither correct nor wrong that stops the run
};

struct RewardModelConfig {
  std::shared_ptr<data::PreferenceSource> pairs, heldout_pairs;
  PreferenceMode mode = PreferenceMode::kPairwise;
  enum class Scores { kAnswer, kResponse };  // <answer>…</answer> alone, or the whole completion
  Scores scores = Scores::kResponse;
  int64_t pairs_per_step = 256;  // single completions when pointwise
};

struct RejectionConfig {
  std::shared_ptr<data::ProblemSource> prompts;
  int64_t problems = 1000;
  int64_t samples_per_problem = 4;
  int64_t keep_per_problem = 1;
  bool keep_unfinished = false;  // samples that were cut at max_new_tokens
  bool drop_mixed_language = true, drop_code_blocks = true;
  int64_t max_paragraph = 2000;  // bytes; longer ones are dropped
  // Stories that nobody ordered are kept behind an order that their beginning fulfils, of so many
  // words; 0: as they were drawn.
  int64_t story_hindsight = 0;
  SamplingConfig sampling;
};

struct StageConfig {
  std::string name, from;  // from: a stage, "init", or a checkpoint or Hugging Face folder
  StageKind kind = StageKind::kPretrain;
  int64_t steps = 0;  // 0: by epochs
  int64_t epochs = 1;
  std::optional<UntilConfig> until;
  int64_t save_every = 100;
  LearningRate lr;
  BatchConfig batch;
  parallel::AdamWConfig optimizer;
  std::shared_ptr<data::ExampleSource> data, heldout;
  std::vector<std::string> samples;  // stages whose output this one is trained on as well
  int64_t heldout_every = 50;
  GrpoConfig grpo;
  RewardModelConfig reward_model;
  RejectionConfig rejection;
  std::string where;  // file:line, for errors found later
};

struct RolloutConfig {
  int workers = 0;  // that `hone run` starts
  int threads = 1;  // of each
  Device::Type device = Device::Type::kCpu;
  std::optional<Numerics> numerics;  // of workers; none: the learner's
  bool allow_logprob_gap = false;    // workers of another build or device than the learner's
  // Where learner ranks keep published weights: in host memory, or on their devices, from which
  // workers on the same machine's devices copy them past the host.
  enum class Publish { kHost, kDevice };
  Publish publish = Publish::kHost;
  // So many versions. A device has room for one where none but the newest is asked for.
  int64_t versions() const {
    return publish == Publish::kDevice && lag + max_staleness == 0 ? 1 : 2;
  }
  bool colocated = false;    // learner and workers take turns with the memory of one device
  int verifier_helpers = 1;  // of each
  int64_t lag = 0, max_staleness = 0;
  int64_t max_batch = 64, page_size = 64, cache_pages = 0, prefill_chunk = 256;
  int64_t prompts_per_lease = 4;
  int lease_seconds = 120, stall_seconds = 600;
  std::string listen = "127.0.0.1:0";
  std::string tls_certificate, tls_key, tls_ca;
  // Whether calls are secured by a certificate of the run's own: beyond loopback none go in clear.
  bool own_certificate() const;
  bool absorb = false;  // MLA decodes with the small cache
  void Read(ConfigReader& reader);
  // ConfigError, beginning with `where`, when the cache of a worker is too small for a sequence
  // that may get `tokens` long.
  void CheckCache(int64_t tokens, int64_t context, const std::string& where) const;
};

// What a policy is measured on: problems that it answers; or texts, of which the loss is measured.
struct EvaluationSuite {
  std::string name;
  std::shared_ptr<data::ProblemSource> problems;
  std::shared_ptr<data::ExampleSource> text;
  std::string samples;  // text that this stage wrote
  BatchConfig batch;    // of texts: as many as fit are measured
  int64_t count = 200;
  SamplingConfig sampling;          // of the sampled pass; the greedy pass uses temperature 0
  int64_t samples_per_problem = 1;  // of the sampled pass; above 1 it reports pass_at_k too
  bool greedy = true, sampled = true;
  std::vector<std::string> after_stages;  // measured after these only; empty: after every stage
  std::string where;                      // file:line, for errors found later
  bool is_text() const { return problems == nullptr; }
  bool After(const std::string& stage) const;
};

struct TrainConfig {
  DType dtype = DType::kF32;
  int threads = 1;  // of each rank
  Device::Type device = Device::Type::kCpu;
  Numerics numerics = Numerics::kBatchInvariant;
  bool fp8 = false;      // products of linear layers and experts
  bool keep_fp8 = true;  // their weights, quantised once a step
  bool activation_checkpointing = false;
  int deadline_seconds = 600;  // of every collective
  int keep_last = 2;
  int64_t keep_every = 0;
  bool asynchronous_checkpoints = true;
  void Read(ConfigReader& reader);
};

struct RunConfig {
  std::string name = "run", dir = "runs";
  uint64_t seed = 1;
  std::string tokenizer = "byte";
  std::vector<std::string> special_tokens;
  model::ModelConfig model;
  std::string hf;  // the Hugging Face folder that `model: {hf: …}` named
  parallel::MeshConfig mesh;
  parallel::PipelineConfig pipeline;
  TrainConfig train;
  RolloutConfig rollout;
  std::vector<StageConfig> stages;
  std::vector<EvaluationSuite> suites;
  bool evaluate_after_every_stage = true;
  std::string resolved_yaml;  // what was read, overrides included

  const StageConfig* FindStage(const std::string& name) const;
  // Whether what the suite reads is there behind `stage`, one of `stages`: samples that another
  // stage writes are not before that one is done.
  bool HasText(const EvaluationSuite& suite, const StageConfig& stage) const;
};

RunConfig ReadRunConfig(const Config& config);
// A part of it: stages, suites and metrics that are named exist, and stand where they can be used.
void CheckReferences(const RunConfig& config);
// That `--until` names: the last one unless it does. ConfigError when there is no such stage.
const StageConfig& FindLastStage(const RunConfig& config, const std::string& until);
// What reading alone does not find: layout against model and schedules, prompts against context and
// verifiers, examples against the length limit, sampling without workers, unless some are to join
// from elsewhere. ConfigError or DataError.
void CheckRun(const RunConfig& config, bool workers_join = false);
// How a supervised stage reads its examples on one rank.
data::DataLoader::Options LoaderOptions(const RunConfig& config, const StageConfig& stage,
                                        int dp_rank);
// How the text of a suite is read: as much as fits into one step.
data::DataLoader::Options TextOptions(const RunConfig& config, const EvaluationSuite& suite,
                                      int dp_rank);
// Lines of prompt and completion, as rejection sampling writes them.
std::shared_ptr<data::ExampleSource> ReadSamples(const std::string& path);
RunConfig LoadRunConfig(const std::string& path, const std::vector<std::string>& overrides);

}  // namespace hone::rl
