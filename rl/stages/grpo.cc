// Reinforcement learning: publish, sample, score, estimate advantages, a few optimizer steps;
// again.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/permutation.h"
#include "rl/stages/logprobs.h"
#include "rl/stages/reference_policy.h"
#include "rl/stages/reward_model.h"
#include "rl/stages/rollout_batch.h"
#include "rl/stages/sample_pool.h"
#include "rl/stages/stages.h"

namespace hone::rl {
namespace {

using nlohmann::json;

class GrpoStage {
 public:
  GrpoStage(Environment& env, const StageConfig& stage)
      : env_(env),
        stage_(stage),
        config_(stage.grpo),
        loop_(env, stage, stage.steps),
        seed_(RandomStream{env.config.seed, HashName(stage.name)}.Bits(0)) {
    Check<ConfigError>(env.pool != nullptr,
                       "{}: stage '{}' samples, but there are no workers: set "
                       "rollout.workers, or start some with `hone worker`",
                       stage.where, stage.name);
    if (config_.loss.kl_coefficient > 0) {
      reference_ = std::make_unique<ReferencePolicy>(env, stage);
      if (env.root()) {
        ReferencePolicy::DropAhead(env.directory.fs(), env.directory.checkpoints(stage.name));
      }
      loop_.set_on_pruned([&fs = env.directory.fs(), dir = env.directory.checkpoints(stage.name)] {
        ReferencePolicy::Prune(fs, dir);
      });
    }
    if (!config_.reward_models.empty()) reward_models_.emplace(env, config_);
    if (!loop_.resumed().is_null()) {
      rollout_ = loop_.resumed().at("rollout");
      const int64_t step = loop_.resumed().at("reference_step");
      if (reference_) reference_->Restore(step, step == 0 ? loop_.start() : "");
    } else if (reference_) {
      reference_->Refresh(0);
    }
    begun_ = rollout_;
  }

  void Run() {
    if (env_.config.rollout.lag == 1) {
      RunOneBehind();
    } else {
      RunAhead(env_.config.rollout.max_staleness);
    }
    SaveReference();
    loop_.Complete(Cursor());
  }

 private:
  WeightVersion Publish() {
    const auto begun = std::chrono::steady_clock::now();
    WeightVersion version = env_.pool->Publish();
    publish_seconds_ = SecondsSince(begun);
    return version;
  }
  static double SecondsSince(std::chrono::steady_clock::time_point begun) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begun;
    return std::round(seconds.count() * 1e4) / 1e4;
  }

  // Every rollout is drawn by the weights of one step: those before the rollout that is learned
  // from meanwhile.
  void RunOneBehind() {
    if (loop_.step() < loop_.total_steps()) BeginRollout(rollout_, SamplingWeights());
    while (loop_.step() < loop_.total_steps()) {
      RolloutBatch batch = FinishRollout();
      // What was sampled is in the journal; the weights that drew it are named there too, so that
      // the run can go on from exactly here.
      SaveIfDue();
      WeightVersion version = Publish();
      if (MoreAfter(1)) BeginRollout(rollout_ + 1, version);
      Learn(batch);
      ++rollout_;
    }
  }

  // Rollouts up to `ahead` further than the one that is learned from are begun, so that none is
  // older than that many when its turn comes; each lease takes the newest weights. 0: synchronous.
  void RunAhead(int64_t ahead) {
    while (loop_.step() < loop_.total_steps()) {
      WeightVersion version = SamplingWeights();
      while (begun_ <= rollout_ + ahead && MoreAfter(begun_ - rollout_)) {
        BeginRollout(begun_, version);
      }
      RolloutBatch batch = FinishRollout();
      Learn(batch);
      ++rollout_;
      sampled_by_.clear();
      SaveIfDue();
    }
  }

  // The weights of the next rollout: today's, or after a resume with lag 1 those that the journal
  // is bound to.
  WeightVersion SamplingWeights() {
    WeightVersion version = Publish();
    if (!loop_.resumed().is_null() && !resumed_weights_used_) {
      resumed_weights_used_ = true;
      std::string digest = loop_.resumed().at("sampled_by");
      if (!digest.empty()) version.digest = digest;
    }
    return version;
  }

  bool OneBehind() const { return env_.config.rollout.lag == 1; }

  bool MoreAfter(int64_t rollouts) const {
    return loop_.step() + rollouts * config_.minibatches < loop_.total_steps();
  }

  void BeginRollout(int64_t rollout, const WeightVersion& version) {
    RolloutPlan plan = PlanOf(rollout, 0, version);
    sampling_weights_ = version;
    sampled_by_ = plan.weight_digest;
    begun_ = rollout + 1;
    env_.pool->Begin(std::move(plan));
  }

  // Round 0 is the rollout; with dynamic sampling, further rounds draw further prompts for it by
  // the same weights.
  int64_t Rounds() const { return config_.dynamic_sampling ? config_.dynamic_sampling_rounds : 1; }
  std::string RoundName(int64_t round) const {
    return round == 0 ? stage_.name : fmt::format("{}/round-{}", stage_.name, round);
  }

  RolloutPlan PlanOf(int64_t rollout, int64_t round, const WeightVersion& version) const {
    RolloutPlan plan;
    plan.stage = RoundName(round);
    plan.rollout = rollout;
    plan.seed = env_.config.seed;
    bool any = env_.config.rollout.max_staleness > 0;
    plan.weight_version = any ? 0 : version.version;
    plan.weight_digest = any ? "" : version.digest;
    plan.group_size = config_.group_size;
    plan.sampling = config_.sampling.sampling;
    plan.max_new_tokens = config_.sampling.max_new_tokens;
    plan.stop_strings = config_.sampling.stop_strings;
    plan.stop_ids = config_.sampling.StopIds(*env_.tokenizer);
    plan.record_routing = config_.replay_routing;
    plan.environment = config_.sampling.environment;
    for (int64_t i = 0; i < config_.prompts_per_rollout; ++i) {
      RolloutPrompt prompt;
      prompt.index = round * config_.prompts_per_rollout + i;
      prompt.problem = ProblemAt(rollout, prompt.index);
      prompt.tokens = env_.tokenizer->Encode(prompt.problem.prompt);
      stage_.batch.CheckPack(
          static_cast<int64_t>(prompt.tokens.size()), plan.max_new_tokens,
          fmt::format("{}: stage '{}': problem {}", stage_.where, stage_.name, prompt.problem.id));
      plan.prompts.push_back(std::move(prompt));
    }
    return plan;
  }

  // General prompts take their share of each rollout during the last steps. Every round has prompts
  // of its own, used or not, so that what a rollout draws does not depend on earlier ones.
  data::Problem ProblemAt(int64_t rollout, int64_t prompt) const {
    int64_t i = prompt % config_.prompts_per_rollout;  // within its round
    int64_t first_general = stage_.steps - config_.general_last_steps;
    bool general_now = config_.general_prompts && rollout * config_.minibatches >= first_general;
    int64_t general =
        general_now
            ? std::llround(config_.general_share * static_cast<double>(config_.prompts_per_rollout))
            : 0;
    const data::ProblemSource& source = i < general ? *config_.general_prompts : *config_.prompts;
    int64_t index = rollout * Rounds() * config_.prompts_per_rollout + prompt;
    if (int64_t size = source.size(); size >= 0) {
      data::SeededPermutation order(size, seed_, index / size);
      index = static_cast<int64_t>(order(index % size));
    }
    data::Problem problem = source.At(index);
    if (i < general) problem.kind = "general";  // a JSONL file need not say so
    return problem;
  }

  // What was drawn, with the prompts that are learned from chosen; fills summary_.
  RolloutBatch FinishRollout() {
    const auto begun = std::chrono::steady_clock::now();
    std::vector<Sample> drawn = FinishRound(0);
    int64_t rounds = 1;
    while (rounds < Rounds() && InformativePrompts(drawn, config_) < config_.prompts_per_rollout) {
      env_.pool->Begin(PlanOf(rollout_, rounds, sampling_weights_));
      for (Sample& sample : FinishRound(rounds)) drawn.push_back(std::move(sample));
      ++rounds;
    }
    const double waited = SecondsSince(begun);
    CheckUsable(drawn);
    summary_ = Summarize(drawn);
    summary_["waiting_seconds"] = waited;
    summary_["publish_seconds"] = publish_seconds_;
    if (env_.config.rollout.publish == RolloutConfig::Publish::kDevice) {
      summary_["weight_host_bytes"] = env_.pool->WeightHostBytes();
    }
    if (config_.dynamic_sampling) {
      summary_["rounds"] = rounds;
      summary_["informative_prompts"] = InformativePrompts(drawn, config_);
      drawn = ChoosePrompts(std::move(drawn), config_);
    }
    RolloutBatch batch;
    batch.samples = std::move(drawn);
    AssignAdvantages(&batch, config_, RandomStream{seed_, static_cast<uint64_t>(rollout_)}.Bits(0));
    return batch;
  }

  std::vector<Sample> FinishRound(int64_t round) {
    std::vector<Sample> samples;
    try {
      // One rollout behind, what is being sampled could not be finished after a stop: its weights
      // would be gone. So a stop then waits for the rollout's end, as long as workers get on.
      samples =
          env_.pool->Finish(RoundName(round), rollout_,
                            OneBehind() ? SamplePool::Stop::kWhenStuck : SamplePool::Stop::kAtOnce);
      AddModelRewards(&samples);
    } catch (const StoppedEarly&) {
      if (OneBehind()) throw;  // the last checkpoint stands
      StopHere();
    }
    return samples;
  }

  void AddModelRewards(std::vector<Sample>* samples) {
    if (!reward_models_) return;
    std::vector<data::Problem> problems;
    for (const Sample& s : *samples) problems.push_back(ProblemAt(rollout_, s.key.prompt));
    reward_models_->AddRewards(problems, samples);
  }

  void CheckUsable(const std::vector<Sample>& samples) const {
    const double share = UnusableShare(samples);
    Check(share <= config_.max_unusable,
          "[{}] {:.0f} % of the samples of rollout {} were unparseable, timed out, crashed or "
          "refused (at most {:.0f} % are allowed by max_unusable): look at {}/rollout-{:06d}.jsonl",
          stage_.name, 100 * share, rollout_, 100 * config_.max_unusable,
          env_.directory.rollouts(stage_.name), rollout_);
  }

  void Learn(RolloutBatch& batch) {
    AddLogprobs(&batch);
    uint64_t split_seed = RandomStream{seed_, static_cast<uint64_t>(rollout_)}.Bits(1);
    auto minibatches = SplitMinibatches(static_cast<int64_t>(batch.samples.size()),
                                        config_.minibatches, split_seed);
    PolicyLoss loss(config_.loss);
    // The workers' log-probabilities against the learner's before the rollout's first step moved
    // it: of the first minibatch, whose forward is that very policy.
    json gap;
    for (auto& which : minibatches) {
      LearnerBatches data =
          MakeLearnerBatches(batch, which, config_, stage_.batch, env_.config.mesh.dp,
                             env_.learner.mesh().dp_index(), env_.learner.pipeline_shape());
      auto result = env_.learner.engine().Step(data.microbatches, loss, loop_.lr());
      json extra = summary_;
      AddLossMetrics(result.metrics, &gap, &extra);
      loop_.FinishStep(result, data.tokens, extra, nullptr);
      if (reference_ && config_.reference_every > 0 &&
          loop_.step() % config_.reference_every == 0) {
        reference_->Refresh(loop_.step());
      }
      if (loop_.step() == loop_.total_steps()) break;
    }
  }

  void AddLogprobs(RolloutBatch* batch) {
    if (reference_) batch->reference_logp = ReferenceLogprobs(*batch);
    AddOldLogprobs(env_, stage_, batch);
  }

  std::vector<std::vector<float>> ReferenceLogprobs(const RolloutBatch& batch) {
    try {
      return reference_->Logprobs(batch, rollout_);
    } catch (const StoppedEarly&) {
      if (OneBehind()) throw;  // the last checkpoint stands
      StopHere();
    }
  }

  json Summarize(const std::vector<Sample>& samples) const {
    std::map<std::string, double> parts;
    std::map<std::string, int64_t> outcomes;
    double total = 0, tokens = 0, truncated = 0;
    for (const Sample& sample : samples) {
      total += CombineRewards(sample, config_);
      tokens += static_cast<double>(sample.completion_tokens());
      truncated += sample.finish == FinishReason::kLength;
      for (const auto& [name, value] : sample.rewards) parts[name] += value;
      ++outcomes[std::string(OutcomeName(sample.outcome))];
    }
    double n = std::max<double>(1, static_cast<double>(samples.size()));
    json out = {{"rollout", rollout_},
                {"reward", total / n},
                {"completion_tokens", tokens / n},
                {"truncated", truncated / n},
                {"outcomes", outcomes}};
    for (const auto& [name, value] : parts) out[name] = value / n;
    return out;
  }

  static void AddLossMetrics(parallel::MetricSums sums, json* gap, json* extra) {
    const double tokens = sums.contains("tokens") ? sums.at("tokens") : 0;
    if (gap->is_null() && tokens > 0) {
      *gap = {{"logprob_gap", sums["logprob_gap"] / tokens},
              {"largest_logprob_gap", sums["largest_logprob_gap"]}};
    }
    sums.erase("logprob_gap");
    sums.erase("largest_logprob_gap");
    for (const auto& [name, value] : sums) (*extra)[name] = value;
    if (!gap->is_null()) extra->update(*gap);
  }

  json Cursor() const {
    return {{"rollout", rollout_},
            {"reference_step", reference_ ? reference_->step() : 0},
            {"sampled_by", sampled_by_}};
  }

  void SaveIfDue() {
    if (env_.AgreeToStop()) StopHere();
    if (!loop_.SaveDue()) return;
    SaveReference();
    loop_.Save(Cursor());
  }
  [[noreturn]] void StopHere() {
    SaveReference();
    loop_.StopHere(Cursor());
  }
  // Before each checkpoint, which names it.
  void SaveReference() {
    if (reference_) reference_->Save();
  }

  Environment& env_;
  const StageConfig& stage_;
  const GrpoConfig& config_;
  TrainingLoop loop_;
  uint64_t seed_;
  std::unique_ptr<ReferencePolicy> reference_;
  std::optional<RewardModels> reward_models_;
  int64_t rollout_ = 0, begun_ = 0;  // the one to learn from; the first not yet begun
  bool resumed_weights_used_ = false;
  WeightVersion sampling_weights_;  // of the rollout begun last
  std::string sampled_by_;
  double publish_seconds_ = 0;  // of the last publication, this rank's part
  json summary_;                // of the rollout that is learned from: all that was drawn for it
};

}  // namespace

void RunGrpo(Environment& env, const StageConfig& stage) { GrpoStage(env, stage).Run(); }

}  // namespace hone::rl
