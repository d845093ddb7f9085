#include "rl/stages/reward_model.h"

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "parallel/comm/process_group.h"
#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

using nlohmann::json;

constexpr int64_t kHeldoutOfEndless = 256;  // pairs measured where the source has no end
constexpr int64_t kItemsALease = 16;        // of those that the pool scores
constexpr char kPinnedPrefix[] = "reward/";

class RewardModelStage {
 public:
  RewardModelStage(Environment& env, const StageConfig& stage)
      : env_(env),
        stage_(stage),
        config_(stage.reward_model),
        loss_(config_.mode),
        order_seed_(
            RandomStream{env.config.seed, HashName(stage.name), HashName("order")}.Bits(0)) {
    if (config_.heldout_pairs) {
      int64_t size = config_.heldout_pairs->size();
      for (int64_t i = 0; i < (size < 0 ? kHeldoutOfEndless : size); ++i) {
        heldout_.push_back(Item(*config_.heldout_pairs, i));
      }
    }
  }

  void Run() {
    TrainingLoop loop(env_, stage_, TotalSteps());
    // Everything that says where the stage stands is the step.
    auto cursor = [] { return json::object(); };
    while (loop.step() < loop.total_steps()) {
      std::vector<PreferenceItem> items;
      for (int64_t i : PreferencesOfStep(stage_, order_seed_, loop.step())) {
        items.push_back(Item(*config_.pairs, i));
      }
      PreferenceBatches data = Batches(items);
      auto result = env_.learner.engine().Step(data.microbatches, loss_, loop.lr());
      json extra = {{"pairs", items.size()}};
      for (const auto& [name, value] : result.metrics) extra[name] = value;
      int64_t step = loop.step() + 1;
      bool look = step % stage_.heldout_every == 0 || step == 1 || step == loop.total_steps();
      if (!heldout_.empty() && look) MeasureHeldout(&extra);
      loop.FinishStep(result, data.tokens, extra, cursor);
    }
    loop.Complete(cursor());
  }

 private:
  int64_t TotalSteps() const {
    if (stage_.steps > 0) return stage_.steps;
    int64_t items = stage_.epochs * config_.pairs->size();
    return (items + config_.pairs_per_step - 1) / config_.pairs_per_step;
  }

  PreferenceItem Item(const data::PreferenceSource& source, int64_t index) const {
    return MakePreferenceItem(*env_.tokenizer, source.At(index), config_, stage_.batch,
                              source.Where(index));
  }

  PreferenceBatches Batches(const std::vector<PreferenceItem>& items) const {
    return MakePreferenceBatches(items, stage_.batch.pack_tokens, env_.config.mesh.dp,
                                 env_.learner.mesh().dp_index(), env_.learner.pipeline_shape());
  }

  void MeasureHeldout(json* extra) {
    double loss = 0, accuracy = 0;
    for (auto& o : env_.learner.engine().Evaluate(Batches(heldout_).microbatches, loss_, false)) {
      loss += o.loss;
      accuracy += o.metrics["accuracy"];
    }
    std::vector<double> sums = env_.Sum({loss, accuracy});
    (*extra)["heldout_loss"] = sums[0];
    (*extra)["heldout_accuracy"] = sums[1];
  }

  Environment& env_;
  const StageConfig& stage_;
  const RewardModelConfig& config_;
  RewardModelLoss loss_;
  uint64_t order_seed_;
  std::vector<PreferenceItem> heldout_;
};

// Which item each outcome's values belong to, as bytes for the other ranks.
void AppendScores(const TokenBatch& batch, const parallel::PipelineStage::Outcome& outcome,
                  std::string* out) {
  std::vector<double> values = runtime::ToDoubles(outcome.head.value_T);
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    double row[2] = {static_cast<double>(batch.sample_S[s] / 2),
                     values[static_cast<size_t>(batch.cu_seqlens[s + 1]) - 1]};
    out->append(reinterpret_cast<const char*>(row), sizeof row);
  }
}

}  // namespace

model::ModelConfig WithValueHead(model::ModelConfig model) {
  model.value_head = true;
  return model;
}

void RunRewardModel(Environment& env, const StageConfig& stage) {
  env.learner.EndStage();
  RunConfig config = env.config;
  config.model = WithValueHead(config.model);
  Learner learner(env.learner.ctx(), env.learner.mesh(), config, env.directory.fs());
  Environment own{env.config, env.directory, learner, env.tokenizer,
                  env.state,  env.metrics,   nullptr, env.stop};
  RewardModelStage(own, stage).Run();
}

FrozenRewardModel::FrozenRewardModel(Environment& env, const std::string& name,
                                     GrpoConfig::Place place)
    : env_(env),
      stage_(*env.config.FindStage(name)),
      chunks_(env.learner.MakeFrozenChunks(WithValueHead(env.config.model))) {
  env.learner.LoadSlabs(StartOf(env, name), Learner::StateOf(chunks_, "model/"));
  if (place == GrpoConfig::Place::kPool) {
    pinned_ = env.pool->Pin(kPinnedPrefix + name, Learner::StateOf(chunks_, ""));
    chunks_.clear();
    return;
  }
  std::vector<parallel::PipelineStage*> stages;
  for (auto& chunk : chunks_) stages.push_back(chunk.get());
  parallel::TrainEngine::Options options;
  options.pipeline = env.config.pipeline;
  options.keep_fp8 = env.config.train.keep_fp8;
  engine_ = std::make_unique<parallel::TrainEngine>(env.learner.ctx(), env.learner.mesh(), stages,
                                                    options);
}

FrozenRewardModel::~FrozenRewardModel() {
  if (!engine_) env_.pool->Release(kPinnedPrefix + stage_.name);
}

std::vector<double> FrozenRewardModel::Score(const std::vector<std::string>& prompts,
                                             const std::vector<std::string>& completions,
                                             const ReadingName& name) {
  const RewardModelConfig& config = stage_.reward_model;
  std::vector<PreferenceItem> items;
  for (size_t i = 0; i < prompts.size(); ++i) {
    items.push_back(
        MakeScoredItem(*env_.tokenizer, prompts[i], completions[i], config, stage_.batch));
  }
  std::vector<double> scores = engine_ ? ValuesHere(items) : ValuesFromPool(items, name);
  if (config.mode == PreferenceMode::kPointwise) {
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
  }
  return scores;
}

std::vector<double> FrozenRewardModel::ValuesHere(const std::vector<PreferenceItem>& items) {
  PreferenceBatches data = MakePreferenceBatches(
      items, stage_.batch.pack_tokens, env_.config.mesh.dp, env_.learner.mesh().dp_index());
  // Pointwise takes sequences one by one, whatever the model was trained with.
  auto outcomes =
      engine_->Evaluate(data.microbatches, RewardModelLoss(PreferenceMode::kPointwise), true);
  std::string mine;
  for (size_t m = 0; m < outcomes.size(); ++m) {
    AppendScores(data.microbatches[m], outcomes[m], &mine);
  }
  std::vector<double> values(items.size(), 0.0);
  for (const std::string& bytes : env_.world().AllGatherBytes(mine)) {
    for (size_t at = 0; at < bytes.size(); at += 2 * sizeof(double)) {
      double row[2];
      std::memcpy(row, bytes.data() + at, sizeof row);
      values[static_cast<size_t>(row[0])] = row[1];
    }
  }
  return values;
}

std::vector<double> FrozenRewardModel::ValuesFromPool(const std::vector<PreferenceItem>& items,
                                                      const ReadingName& name) {
  std::vector<Sample> given;
  for (const PreferenceItem& item : items) {
    Sample& sample = given.emplace_back();
    const auto i = static_cast<int64_t>(given.size()) - 1;
    sample.key = {name.stage, name.rollout, i / kItemsALease, i % kItemsALease};
    for (int32_t id : item.sequences.front().tokens) {
      sample.tokens.push_back({id, TokenSource::kPrompt, 0, 0});
    }
  }
  SamplePool::Reading reading;
  reading.kind = LeaseKind::kScore;
  reading.stage = name.stage;
  reading.rollout = name.rollout;
  reading.weights = pinned_;
  std::vector<double> values;
  // (prompt, sample) is the items' order.
  for (const Sample& s : env_.pool->Read(reading, given)) values.push_back(s.rewards.at("value"));
  return values;
}

RewardModels::RewardModels(Environment& env, const GrpoConfig& config) {
  for (const auto& [reward, stage] : config.reward_models) {
    models_.try_emplace(reward, env, stage, config.scoring);
  }
}

void RewardModels::AddRewards(const std::vector<data::Problem>& problems,
                              std::vector<Sample>* samples) {
  std::vector<size_t> general;
  std::vector<std::string> prompts, completions;
  for (size_t i = 0; i < samples->size(); ++i) {
    if (problems[i].kind != "general") continue;
    general.push_back(i);
    prompts.push_back(problems[i].prompt);
    completions.push_back((*samples)[i].text);
  }
  if (general.empty()) return;
  for (auto& [reward, model] : models_) {
    const SampleKey& key = (*samples)[general.front()].key;
    std::vector<double> scores =
        model.Score(prompts, completions, {key.stage + "/score/" + reward, key.rollout});
    for (size_t k = 0; k < general.size(); ++k) (*samples)[general[k]].rewards[reward] = scores[k];
  }
}

}  // namespace hone::rl
