// From samples to the learner's batches: rewards, advantages, packing, weights. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/pipeline_schedule.h"
#include "rl/rollout/sample.h"
#include "rl/run_config.h"
#include "runtime/token_batch.h"

namespace hone::rl {

// The samples of one rollout in (prompt, sample) order with what learning needs of them.
struct RolloutBatch {
  std::vector<Sample> samples;
  std::vector<double> reward, advantage;  // a sample
  std::vector<int64_t> group;             // a sample: its prompt
  // A sample, a completion token; may be empty. Without old ones, those of the sampling are.
  std::vector<std::vector<float>> old_logp, reference_logp;
  // The policy has not moved since the rollout began when it meets these samples: its forward pass
  // gives the old log-probabilities, and batches carry none.
  bool old_is_current = false;
};

// Σ weight · part, DAPO's soft overlong punishment included (2503.14476 eq. 13).
double CombineRewards(const Sample& sample, const GrpoConfig& config);
// Of the samples that were judged neither right nor wrong.
double UnusableShare(const std::vector<Sample>& samples);
// Dynamic sampling (2503.14476 §3.2): prompts whose samples' rewards differ tell something; where
// all are right or all wrong, every advantage is 0.
int64_t InformativePrompts(const std::vector<Sample>& samples, const GrpoConfig& config);
// The samples of `config.prompts_per_rollout` prompts, in prompt order: the first informative ones,
// and where they are too few the first of the others.
std::vector<Sample> ChoosePrompts(std::vector<Sample> samples, const GrpoConfig& config);
// Fills reward and advantage from the samples' parts. With `shuffle_rewards` they are permuted by
// `seed`.
void AssignAdvantages(RolloutBatch* batch, const GrpoConfig& config, uint64_t seed);

// The samples of each optimizer step: a random partition keyed by `seed`.
std::vector<std::vector<int64_t>> SplitMinibatches(int64_t samples, int64_t minibatches,
                                                   uint64_t seed);

// This dp rank's packs of the given samples, and everyone's number of tokens. Loss weights sum,
// over all ranks, to 1 for kSequence and kToken.
struct LearnerBatches {
  std::vector<TokenBatch> microbatches;
  std::vector<std::vector<int64_t>> samples;  // which samples each microbatch holds, in order
  int64_t tokens = 0;
};
// `pipeline`: the schedule that is to run them. Where it wants more microbatches than whole packs
// make, packs are smaller, and what is still missing is empty.
LearnerBatches MakeLearnerBatches(const RolloutBatch& rollout, const std::vector<int64_t>& which,
                                  const GrpoConfig& config, const BatchConfig& batch, int dp,
                                  int dp_rank, const parallel::PipelineShape& pipeline = {});

// Which sequences of these lengths share a microbatch of each dp rank: [rank][microbatch] → members
// in order, as many for each rank and as `pipeline` asks for.
std::vector<std::vector<std::vector<int64_t>>> PackMicrobatches(
    const std::vector<int64_t>& lengths, int64_t pack_tokens, int dp,
    const parallel::PipelineShape& pipeline);

}  // namespace hone::rl
