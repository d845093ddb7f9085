// From preferences and samples to the batches of a reward model. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/packing.h"
#include "data/task.h"
#include "data/tokenizer.h"
#include "parallel/pipeline_schedule.h"
#include "rl/run_config.h"
#include "runtime/token_batch.h"

namespace hone::rl {

// The part of a completion that a reward model reads: all of it, or the answer alone ([R1] App. B:
// helpfulness scores the final summary only). A text without an <answer> is read whole.
std::string ScoredPart(const std::string& completion, RewardModelConfig::Scores scores);

// One item of a step: a pair, or a single labelled completion.
struct PreferenceItem {
  std::vector<data::TokenSequence> sequences;  // the chosen first
  bool rejected = false;                       // of a single one: its label is bad
  int64_t tokens() const;
};
// prompt, completion, end token, all of them inputs. DataError, beginning with `where`, for an item
// of the other mode, a sequence beyond `max_length` or a pair beyond `pack_tokens`.
PreferenceItem MakePreferenceItem(const data::Tokenizer& tokenizer,
                                  const data::Preference& preference,
                                  const RewardModelConfig& config, const BatchConfig& batch,
                                  const std::string& where);
// One completion to be scored; cut at the front where it is longer than `max_length`.
PreferenceItem MakeScoredItem(const data::Tokenizer& tokenizer, const std::string& prompt,
                              const std::string& completion, const RewardModelConfig& config,
                              const BatchConfig& batch);

// This dp rank's packs of a step's items, each item in one pack (see RewardModelLoss), and
// everyone's tokens; as many packs as the schedule `pipeline` asks for (rollout_batch.h). The
// weights of all ranks sum to 1.
struct PreferenceBatches {
  std::vector<TokenBatch> microbatches;
  int64_t tokens = 0;
};
PreferenceBatches MakePreferenceBatches(const std::vector<PreferenceItem>& items,
                                        int64_t pack_tokens, int dp, int dp_rank,
                                        const parallel::PipelineShape& pipeline = {});

// Which items step `step` (from 0) of a stage trains on, as indices of the source: an endless one
// is taken as it comes, a finite one is shuffled anew each epoch.
std::vector<int64_t> PreferencesOfStep(const StageConfig& stage, uint64_t seed, int64_t step);

}  // namespace hone::rl
