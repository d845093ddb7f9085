#include "rl/stages/rollout_batch.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "data/packing.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

// Fisher–Yates by a named stream.
std::vector<int64_t> Shuffled(int64_t n, const RandomStream& stream) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = n - 1; i > 0; --i) {
    std::swap(order[i], order[stream.Below(static_cast<uint64_t>(i + 1), i)]);
  }
  return order;
}

data::TokenSequence ToSequence(const Sample& sample) {
  data::TokenSequence sequence;
  for (const SampleToken& token : sample.tokens) {
    sequence.tokens.push_back(token.id);
    sequence.weight.push_back(token.source == TokenSource::kModel ? 1.0f : 0.0f);
  }
  return sequence;
}

// What one token of `sample` weighs in the step's loss.
double TokenWeight(const Sample& sample, const GrpoConfig& config, double samples, double tokens) {
  switch (config.average) {
    case GrpoConfig::Average::kSequence: {
      int64_t drawn =
          std::count_if(sample.tokens.begin(), sample.tokens.end(),
                        [](const SampleToken& t) { return t.source == TokenSource::kModel; });
      return 1.0 / (samples * static_cast<double>(std::max<int64_t>(1, drawn)));
    }
    case GrpoConfig::Average::kToken:
      return 1.0 / tokens;
    case GrpoConfig::Average::kMaxLength:
      return 1.0 / (samples * static_cast<double>(config.sampling.max_new_tokens));
  }
  return 0;
}

// Values of completion token j of a sample, where there are any.
float ValueAt(const std::vector<std::vector<float>>& values, int64_t sample, int64_t j) {
  return values.empty() ? 0.0f : values[sample][j];
}

void AppendRlFields(const RolloutBatch& rollout, int64_t index, double weight, TokenBatch* batch,
                    int64_t begin) {
  const Sample& sample = rollout.samples[index];
  int64_t prompt = sample.prompt_tokens();
  for (size_t i = 1; i < sample.tokens.size(); ++i) {
    int64_t t = begin + static_cast<int64_t>(i) - 1;  // the input token that predicts tokens[i]
    if (sample.tokens[i].source != TokenSource::kModel) continue;
    int64_t j = static_cast<int64_t>(i) - prompt;
    batch->loss_weight_T[t] = static_cast<float>(weight);
    batch->sampled_logp_T[t] = sample.tokens[i].logp;
    batch->old_logp_T[t] =
        rollout.old_logp.empty() ? sample.tokens[i].logp : ValueAt(rollout.old_logp, index, j);
    batch->reference_logp_T[t] = ValueAt(rollout.reference_logp, index, j);
    batch->advantage_T[t] = static_cast<float>(rollout.advantage[index]);
  }
}

TokenBatch MakeRlBatch(const RolloutBatch& rollout, const std::vector<int64_t>& which,
                       const GrpoConfig& config, double samples, double tokens) {
  std::vector<data::TokenSequence> sequences;
  for (int64_t index : which) sequences.push_back(ToSequence(rollout.samples[index]));
  std::vector<const data::TokenSequence*> pointers;
  for (auto& s : sequences) pointers.push_back(&s);
  TokenBatch batch = data::MakeBatch(pointers);
  size_t n = batch.token_T.size();
  batch.loss_weight_T.assign(n, 0.0f);
  for (auto* field :
       {&batch.sampled_logp_T, &batch.old_logp_T, &batch.reference_logp_T, &batch.advantage_T}) {
    field->assign(n, 0.0f);
  }
  for (size_t s = 0; s < which.size(); ++s) {
    const Sample& sample = rollout.samples[which[s]];
    AppendRlFields(rollout, which[s], TokenWeight(sample, config, samples, tokens), &batch,
                   batch.cu_seqlens[s]);
    batch.sample_S.push_back(static_cast<int32_t>(which[s]));
    if (config.replay_routing) {
      batch.routing_TLK.insert(batch.routing_TLK.end(), sample.routing_TLK.begin(),
                               sample.routing_TLK.end());
    }
  }
  if (rollout.old_is_current) batch.old_logp_T.clear();
  return batch;
}

// By prompt: whether its samples' rewards differ.
std::map<int64_t, bool> RewardsDiffer(const std::vector<Sample>& samples,
                                      const GrpoConfig& config) {
  std::map<int64_t, double> first;
  std::map<int64_t, bool> differ;
  for (const Sample& sample : samples) {
    double reward = CombineRewards(sample, config);
    auto [it, fresh] = first.emplace(sample.key.prompt, reward);
    differ[sample.key.prompt] |= !fresh && reward != it->second;
  }
  return differ;
}

}  // namespace

double CombineRewards(const Sample& sample, const GrpoConfig& config) {
  double reward = 0;
  for (const auto& [name, weight] : config.reward) {
    auto part = sample.rewards.find(name);
    if (part != sample.rewards.end()) reward += weight * part->second;
  }
  if (config.overlong_buffer > 0) {
    double limit = static_cast<double>(config.sampling.max_new_tokens);
    double buffer = config.overlong_buffer * limit;
    double over = static_cast<double>(sample.completion_tokens()) - (limit - buffer);
    reward -= std::clamp(over / buffer, 0.0, 1.0);
  }
  return reward;
}

double UnusableShare(const std::vector<Sample>& samples) {
  const auto unusable = std::count_if(samples.begin(), samples.end(), [](const Sample& s) {
    return s.outcome != Outcome::kCorrect && s.outcome != Outcome::kWrong;
  });
  return static_cast<double>(unusable) / std::max<double>(1, static_cast<double>(samples.size()));
}

int64_t InformativePrompts(const std::vector<Sample>& samples, const GrpoConfig& config) {
  int64_t informative = 0;
  for (const auto& [prompt, differ] : RewardsDiffer(samples, config)) informative += differ;
  return informative;
}

std::vector<Sample> ChoosePrompts(std::vector<Sample> samples, const GrpoConfig& config) {
  std::map<int64_t, bool> differ = RewardsDiffer(samples, config);
  std::set<int64_t> chosen;
  for (bool informative : {true, false}) {
    for (const auto& [prompt, differs] : differ) {
      bool room = static_cast<int64_t>(chosen.size()) < config.prompts_per_rollout;
      if (room && differs == informative) chosen.insert(prompt);
    }
  }
  std::vector<Sample> kept;
  for (Sample& sample : samples) {
    if (chosen.count(sample.key.prompt) > 0) kept.push_back(std::move(sample));
  }
  return kept;
}

void AssignAdvantages(RolloutBatch* batch, const GrpoConfig& config, uint64_t seed) {
  int64_t n = static_cast<int64_t>(batch->samples.size());
  batch->reward.clear();
  batch->group.clear();
  for (const Sample& sample : batch->samples) {
    batch->reward.push_back(CombineRewards(sample, config));
    batch->group.push_back(sample.key.prompt);
  }
  if (config.shuffle_rewards) {
    std::vector<double> original = batch->reward;
    std::vector<int64_t> order = Shuffled(n, RandomStream{seed, HashName("shuffle_rewards")});
    for (int64_t i = 0; i < n; ++i) batch->reward[i] = original[order[i]];
  }
  std::map<int64_t, std::vector<int64_t>> members;
  for (int64_t i = 0; i < n; ++i) members[batch->group[i]].push_back(i);
  std::vector<std::vector<double>> grouped;
  for (auto& [prompt, which] : members) {
    grouped.emplace_back();
    for (int64_t i : which) grouped.back().push_back(batch->reward[i]);
  }
  auto advantages = Advantages(config.advantage, grouped);
  batch->advantage.assign(n, 0.0);
  size_t g = 0;
  for (auto& [prompt, which] : members) {
    for (size_t k = 0; k < which.size(); ++k) batch->advantage[which[k]] = advantages[g][k];
    ++g;
  }
}

std::vector<std::vector<int64_t>> SplitMinibatches(int64_t samples, int64_t minibatches,
                                                   uint64_t seed) {
  std::vector<int64_t> order = Shuffled(samples, RandomStream{seed, HashName("minibatches")});
  std::vector<std::vector<int64_t>> split(minibatches);
  for (int64_t m = 0; m < minibatches; ++m) {
    split[m].assign(order.begin() + m * samples / minibatches,
                    order.begin() + (m + 1) * samples / minibatches);
    std::sort(split[m].begin(), split[m].end());  // prompt order
  }
  return split;
}

std::vector<std::vector<std::vector<int64_t>>> PackMicrobatches(
    const std::vector<int64_t>& lengths, int64_t pack_tokens, int dp,
    const parallel::PipelineShape& pipeline) {
  auto of_a_rank = [&](size_t packs) { return (static_cast<int64_t>(packs) + dp - 1) / dp; };
  auto packs = data::BestFitPack(lengths, pack_tokens);
  int64_t wanted = pipeline.FittingMicrobatches(of_a_rank(packs.size()));
  if (wanted > of_a_rank(packs.size()) && !lengths.empty()) {
    int64_t longest = *std::max_element(lengths.begin(), lengths.end());
    int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    packs = data::BestFitPack(lengths, std::max(longest, total / (wanted * dp)));
    wanted = pipeline.FittingMicrobatches(of_a_rank(packs.size()));
  }
  std::vector<int64_t> tokens;
  for (auto& pack : packs) {
    std::sort(pack.begin(), pack.end());
    int64_t sum = 0;
    for (int64_t i : pack) sum += lengths[static_cast<size_t>(i)];
    tokens.push_back(sum);
  }
  std::vector<std::vector<std::vector<int64_t>>> ranks;
  for (const std::vector<int64_t>& assigned : data::BalancePacks(tokens, dp)) {
    auto& microbatches = ranks.emplace_back();
    for (int64_t p : assigned) {
      microbatches.push_back(p < 0 ? std::vector<int64_t>() : packs[static_cast<size_t>(p)]);
    }
    microbatches.resize(static_cast<size_t>(wanted));
  }
  return ranks;
}

LearnerBatches MakeLearnerBatches(const RolloutBatch& rollout, const std::vector<int64_t>& which,
                                  const GrpoConfig& config, const BatchConfig& batch, int dp,
                                  int dp_rank, const parallel::PipelineShape& pipeline) {
  LearnerBatches out;
  std::vector<int64_t> lengths;
  double drawn = 0;
  for (int64_t index : which) {
    const Sample& sample = rollout.samples[index];
    lengths.push_back(static_cast<int64_t>(sample.tokens.size()) - 1);
    for (const SampleToken& t : sample.tokens) drawn += t.source == TokenSource::kModel;
    out.tokens += lengths.back();
  }
  const auto ranks = PackMicrobatches(lengths, batch.pack_tokens, dp, pipeline);
  for (const std::vector<int64_t>& pack : ranks[static_cast<size_t>(dp_rank)]) {
    std::vector<int64_t> members;
    for (int64_t i : pack) members.push_back(which[static_cast<size_t>(i)]);
    out.microbatches.push_back(MakeRlBatch(
        rollout, members, config, static_cast<double>(which.size()), std::max(1.0, drawn)));
    out.samples.push_back(std::move(members));
  }
  return out;
}

}  // namespace hone::rl
