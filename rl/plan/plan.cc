#include "rl/plan/plan.h"

#include <algorithm>
#include <filesystem>

namespace hone::rl {
namespace {

namespace fs = std::filesystem;
using Loss = model::MicrobatchShape::Loss;

bool TakesSteps(const StageConfig& s) {
  switch (s.kind) {
    case StageKind::kPretrain:
    case StageKind::kSft:
    case StageKind::kDistill:
    case StageKind::kRewardModel:
    case StageKind::kGrpo:
      return true;
    default:
      return false;
  }
}

// Every source becomes a generated one, which needs no file.
void ReplaceSources(Config* config) {
  ConfigReader root(*config);
  auto replace = [config](const std::vector<ConfigReader*>& maps, const std::string& path,
                          std::initializer_list<const char*> keys) {
    for (size_t i = 0; i < maps.size(); ++i) {
      for (const char* key : keys) {
        if (!maps[i]->Has(key)) continue;
        config->Override(fmt::format("{}.{}.{}={{family: chain, count: 1}}", path, i, key));
      }
    }
  };
  if (root.Has("tokenizer")) config->Override("tokenizer=byte");
  replace(root.List("stages"), "stages",
          {"data", "heldout", "prompts", "general_prompts", "pairs", "heldout_pairs"});
  replace(root.Map("evaluate").List("suites"), "evaluate.suites", {"problems", "text"});
}

// DeepSeek-V3's batch and precision, for a model of which nothing else is said.
Config PlainRun(const std::string& folder) {
  return Config::FromString(fmt::format(R"(run: {{name: plan}}
model: {{hf: "{}"}}
train: {{dtype: bf16, activation_checkpointing: true}}
optimizer: {{moments: bf16}}
stages:
  - {{name: train, kind: pretrain, steps: 1, lr: {{peak: 1.0e-4}},
      batch: {{packs: 15360, pack_tokens: 4096}}, data: {{family: chain}}}}
)",
                                        folder),
                            folder);
}

// Microbatches of a replica that hold `sequences` of `length` tokens.
int64_t MicrobatchesFor(int64_t sequences, int64_t length, int64_t pack_tokens, int dp) {
  const int64_t per_pack = std::max<int64_t>(1, pack_tokens / length);
  const int64_t packs = (sequences + per_pack - 1) / per_pack;
  return (packs + dp - 1) / dp;
}

}  // namespace

RunConfig LoadPlanConfig(const std::string& path, const std::vector<std::string>& overrides) {
  const bool json = path.ends_with(".json");
  const bool model = fs::is_directory(path) || json;
  const std::string folder = json ? fs::path(path).parent_path().string() : path;
  Config config = model ? PlainRun(folder.empty() ? "." : folder) : Config::FromFile(path);
  for (const std::string& assignment : overrides) config.Override(assignment);
  ReplaceSources(&config);
  return ReadRunConfig(config);
}

StepShape StepOf(const RunConfig& config, const StageConfig& stage, int dp) {
  StepShape step;
  const BatchConfig& batch = stage.batch;
  step.tokens = batch.pack_tokens;
  const int64_t length = std::max<int64_t>(1, std::min(batch.pack_tokens, batch.max_length - 1));
  step.sequences = std::max<int64_t>(1, batch.pack_tokens / length);
  int64_t sequences = 0;
  if (stage.kind == StageKind::kGrpo) {
    const GrpoConfig& g = stage.grpo;
    sequences = g.prompts_per_rollout * g.group_size / g.minibatches;
    step.loss = Loss::kPolicy;
    using Place = GrpoConfig::Place;
    const bool reference = g.loss.kl_coefficient > 0;
    if (reference && g.reference == Place::kLearner) ++step.frozen_models;
    if (reference && g.reference == Place::kHost) ++step.visiting_models;
    if (g.scoring == Place::kLearner) {
      step.frozen_models += static_cast<int64_t>(g.reward_models.size());
    }
  } else if (stage.kind == StageKind::kRewardModel) {
    const bool pairs = stage.reward_model.mode == PreferenceMode::kPairwise;
    sequences = stage.reward_model.pairs_per_step * (pairs ? 2 : 1);
    step.loss = Loss::kValues;
    step.idle_models = 1;
  } else {
    Check<ConfigError>(
        batch.packs % dp == 0,
        "{}: stage '{}': {} packs do not split over dp = {}; choose a multiple of it", stage.where,
        stage.name, batch.packs, dp);
    step.microbatches = batch.packs / dp;
    return step;
  }
  parallel::PipelineShape shape;
  shape.kind = config.pipeline.schedule;
  shape.ranks = config.mesh.pp;
  shape.chunks = config.pipeline.chunks_per_rank();
  step.microbatches =
      shape.FittingMicrobatches(MicrobatchesFor(sequences, length, batch.pack_tokens, dp));
  return step;
}

const RankMemory& StagePlan::Fullest() const {
  return *std::max_element(ranks.begin(), ranks.end(),
                           [](const auto& a, const auto& b) { return a.total < b.total; });
}

int64_t RunPlan::PeakBytes() const {
  int64_t peak = 0;
  for (const StagePlan& stage : stages) peak = std::max(peak, stage.Fullest().total);
  return peak;
}

namespace {

// Snapshots of weights on each rank's device.
int64_t PublishedOnDevice(const RunConfig& config, const Layout& layout) {
  const bool on_device = config.rollout.publish == RolloutConfig::Publish::kDevice;
  if (!on_device || layout.cpu || config.rollout.workers == 0) return 0;
  return EstimatePublishedBytes(config) / layout.mesh.ranks();
}

}  // namespace

RunPlan PlanRun(const RunConfig& config, const Layout& layout, const MachineModel& machine) {
  RunPlan plan;
  plan.layout = layout;
  RunConfig laid_out = config;
  laid_out.mesh = layout.mesh;
  laid_out.pipeline = layout.pipeline;
  const int64_t published = PublishedOnDevice(config, layout);
  for (const StageConfig& stage : config.stages) {
    if (!TakesSteps(stage)) continue;
    StagePlan s;
    s.name = stage.name;
    s.kind = StageKindNames()[static_cast<size_t>(stage.kind)];
    s.step = StepOf(laid_out, stage, layout.mesh.dp);
    model::ModelConfig model = config.model;
    model.value_head = model.value_head || stage.kind == StageKind::kRewardModel;
    s.ranks = EstimateMemory(model, layout, s.step);
    s.estimate = EstimateStep(model, layout, s.step, s.ranks, machine);
    for (RankMemory& rank : s.ranks) {
      if (laid_out.rollout.colocated) rank = WithWorkersInTurns(rank, laid_out);
      rank[MemoryCategory::kCommunication] += published;
      rank.total += published;
    }
    plan.stages.push_back(std::move(s));
  }
  return plan;
}

std::string GigaBytes(int64_t bytes) {
  const double gb = static_cast<double>(bytes) / 1e9;
  return gb < 0.1 ? fmt::format("{:.2f} MB", 1e3 * gb) : fmt::format("{:.2f} GB", gb);
}

}  // namespace hone::rl
