#include "rl/stages/logprobs.h"

#include <algorithm>

#include "parallel/comm/process_group.h"

namespace hone::rl {
namespace {

// The values of one microbatch's samples, each {index, count, values}, as bytes for the other
// ranks.
void Append(const RolloutBatch& batch, const TokenBatch& microbatch,
            const std::vector<int64_t>& samples, const parallel::PipelineStage::Outcome& outcome,
            std::string* out) {
  std::vector<double> values = runtime::ToDoubles(outcome.head.logp_T);
  for (size_t s = 0; s < samples.size(); ++s) {
    const Sample& sample = batch.samples[samples[s]];
    int64_t begin = microbatch.cu_seqlens[s] + sample.prompt_tokens() - 1;
    int64_t header[2] = {samples[s], sample.completion_tokens()};
    out->append(reinterpret_cast<const char*>(header), sizeof header);
    for (int64_t j = 0; j < header[1]; ++j) {
      float value = static_cast<float>(values[begin + j]);
      out->append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  }
}

void Distribute(const std::vector<std::string>& gathered, std::vector<std::vector<float>>* logp) {
  for (const std::string& bytes : gathered) {
    size_t at = 0;
    while (at < bytes.size()) {
      int64_t header[2];
      std::copy_n(bytes.data() + at, sizeof header, reinterpret_cast<char*>(header));
      at += sizeof header;
      auto& values = (*logp)[header[0]];
      values.resize(header[1]);
      std::copy_n(bytes.data() + at, values.size() * sizeof(float),
                  reinterpret_cast<char*>(values.data()));
      at += values.size() * sizeof(float);
    }
  }
}

// Whether the workers' log-probabilities may not be the learner's to the bit.
bool MayDiffer(const RunConfig& c) {
  constexpr Numerics kSame = Numerics::kBatchInvariant;
  return c.rollout.allow_logprob_gap || c.rollout.absorb || c.train.numerics != kSame ||
         c.rollout.numerics.value_or(kSame) != kSame;
}

}  // namespace

std::vector<std::vector<float>> LearnerLogprobs(Environment& env, const StageConfig& stage,
                                                const RolloutBatch& batch,
                                                parallel::TrainEngine& engine) {
  std::vector<int64_t> all(batch.samples.size());
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
  LearnerBatches data = MakeLearnerBatches(batch, all, stage.grpo, stage.batch, env.config.mesh.dp,
                                           env.learner.mesh().dp_index());
  std::vector<std::vector<float>> logp(all.size());
  PolicyLossConfig plain;
  plain.temperature = stage.grpo.loss.temperature;
  plain.kl_coefficient = 0;
  auto outcomes = engine.Evaluate(data.microbatches, PolicyLoss(plain), true);
  std::string mine;
  for (size_t m = 0; m < outcomes.size(); ++m) {
    Append(batch, data.microbatches[m], data.samples[m], outcomes[m], &mine);
  }
  // Every rank needs its own samples in every later minibatch, so all get all.
  Distribute(env.world().AllGatherBytes(mine), &logp);
  return logp;
}

void AddOldLogprobs(Environment& env, const StageConfig& stage, RolloutBatch* batch) {
  const RolloutConfig& rollout = env.config.rollout;
  const bool stale = rollout.lag > 0 || rollout.max_staleness > 0;
  const bool corrected = stage.grpo.loss.importance_cap > 0 && MayDiffer(env.config);
  if (!stale && !corrected) return;
  if (stage.grpo.minibatches == 1) {
    batch->old_is_current = true;
  } else {
    batch->old_logp = LearnerLogprobs(env, stage, *batch, env.learner.engine());
  }
}

}  // namespace hone::rl
