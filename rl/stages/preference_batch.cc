#include "rl/stages/preference_batch.h"

#include <algorithm>

#include "data/permutation.h"
#include "rl/reward/verifier.h"
#include "rl/stages/rollout_batch.h"
#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

using data::TokenSequence;

// Every token is an input, the end token too: there the score is read. The repeated last token is
// the target of that input, which nothing is trained on.
TokenSequence ToSequence(const data::Tokenizer& tokenizer, const std::string& prompt,
                         const std::string& completion) {
  TokenSequence sequence;
  sequence.tokens = tokenizer.Encode(prompt);
  std::vector<int32_t> tail = tokenizer.Encode(completion);
  sequence.tokens.insert(sequence.tokens.end(), tail.begin(), tail.end());
  sequence.tokens.insert(sequence.tokens.end(), 2, tokenizer.eos_id());
  sequence.weight.assign(sequence.tokens.size(), 0.0f);
  return sequence;
}

int64_t Inputs(const TokenSequence& sequence) {
  return static_cast<int64_t>(sequence.tokens.size()) - 1;
}

TokenBatch MakePack(const std::vector<PreferenceItem>& items, const std::vector<int64_t>& members,
                    float weight) {
  std::vector<const TokenSequence*> sequences;
  std::vector<size_t> first;  // sequence of each item
  std::vector<int32_t> sample;
  for (int64_t i : members) {
    const PreferenceItem& item = items[static_cast<size_t>(i)];
    first.push_back(sequences.size());
    for (const TokenSequence& sequence : item.sequences) {
      bool rejected = item.rejected || &sequence != &item.sequences.front();
      sample.push_back(static_cast<int32_t>(2 * i + (rejected ? 1 : 0)));
      sequences.push_back(&sequence);
    }
  }
  TokenBatch batch = data::MakeBatch(sequences);
  batch.sample_S = std::move(sample);
  for (size_t s : first) {
    batch.loss_weight_T[static_cast<size_t>(batch.cu_seqlens[s + 1]) - 1] = weight;
  }
  return batch;
}

}  // namespace

std::string ScoredPart(const std::string& completion, RewardModelConfig::Scores scores) {
  if (scores == RewardModelConfig::Scores::kResponse) return completion;
  ParsedCompletion parsed = ParseCompletion(completion);
  return parsed.has_answer ? parsed.answer : completion;
}

int64_t PreferenceItem::tokens() const {
  int64_t sum = 0;
  for (const TokenSequence& sequence : sequences) sum += Inputs(sequence);
  return sum;
}

PreferenceItem MakePreferenceItem(const data::Tokenizer& tokenizer,
                                  const data::Preference& preference,
                                  const RewardModelConfig& config, const BatchConfig& batch,
                                  const std::string& where) {
  bool pairwise = config.mode == PreferenceMode::kPairwise;
  Check<DataError>(preference.pairwise() == pairwise,
                   "{}: {} completion{}, but mode: {}: pairwise compares two, pointwise labels one",
                   where, pairwise ? "one" : "two", pairwise ? "" : "s",
                   pairwise ? "pairwise" : "pointwise");
  PreferenceItem item;
  item.rejected = !pairwise && preference.chosen.empty();
  for (const std::string& completion : {preference.chosen, preference.rejected}) {
    if (completion.empty()) continue;
    item.sequences.push_back(
        ToSequence(tokenizer, preference.prompt, ScoredPart(completion, config.scores)));
    int64_t length = Inputs(item.sequences.back());
    Check<DataError>(length <= batch.max_length,
                     "{}: {} tokens (the end token included) do not fit into {}; raise "
                     "batch.max_length or shorten the example",
                     where, length, batch.max_length);
  }
  Check<DataError>(item.tokens() <= batch.pack_tokens,
                   "{}: a pair of {} tokens does not fit into a pack of {}: raise "
                   "batch.pack_tokens",
                   where, item.tokens(), batch.pack_tokens);
  return item;
}

PreferenceItem MakeScoredItem(const data::Tokenizer& tokenizer, const std::string& prompt,
                              const std::string& completion, const RewardModelConfig& config,
                              const BatchConfig& batch) {
  PreferenceItem item;
  item.sequences.push_back(ToSequence(tokenizer, prompt, ScoredPart(completion, config.scores)));
  TokenSequence& sequence = item.sequences.front();
  int64_t over = Inputs(sequence) - std::min(batch.max_length, batch.pack_tokens);
  if (over > 0) {
    sequence.tokens.erase(sequence.tokens.begin(), sequence.tokens.begin() + over);
    sequence.weight.resize(sequence.tokens.size());
  }
  return item;
}

PreferenceBatches MakePreferenceBatches(const std::vector<PreferenceItem>& items,
                                        int64_t pack_tokens, int dp, int dp_rank,
                                        const parallel::PipelineShape& pipeline) {
  PreferenceBatches out;
  std::vector<int64_t> lengths;
  for (const PreferenceItem& item : items) {
    lengths.push_back(item.tokens());
    out.tokens += lengths.back();
  }
  float weight = 1.0f / static_cast<float>(std::max<size_t>(1, items.size()));
  const auto ranks = PackMicrobatches(lengths, pack_tokens, dp, pipeline);
  for (const std::vector<int64_t>& members : ranks[static_cast<size_t>(dp_rank)]) {
    out.microbatches.push_back(MakePack(items, members, weight));
  }
  return out;
}

std::vector<int64_t> PreferencesOfStep(const StageConfig& stage, uint64_t seed, int64_t step) {
  const RewardModelConfig& config = stage.reward_model;
  int64_t size = config.pairs->size();
  int64_t begin = step * config.pairs_per_step, end = begin + config.pairs_per_step;
  if (size >= 0 && stage.steps == 0) end = std::min(end, stage.epochs * size);
  std::vector<int64_t> which;
  for (int64_t i = begin; i < end; ++i) {
    if (size < 0) {
      which.push_back(i);
      continue;
    }
    data::SeededPermutation order(static_cast<uint64_t>(size), seed,
                                  static_cast<uint64_t>(i / size));
    which.push_back(static_cast<int64_t>(order(static_cast<uint64_t>(i % size))));
  }
  return which;
}

}  // namespace hone::rl
