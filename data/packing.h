// From examples to TokenBatches: tokenise, order by seed, pack without padding, go on after a
// restart.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/task.h"
#include "data/tokenizer.h"
#include "runtime/thread_pool.h"
#include "runtime/token_batch.h"

namespace hone::data {

// One sequence: inputs are tokens[0 … n−2], targets tokens[1 … n−1]; weight_n[i] is the loss weight
// of predicting tokens[i] (weight_n[0] is unused).
struct TokenSequence {
  std::vector<int32_t> tokens;
  std::vector<float> weight;
};
// prompt, completion, eos unless `with_end` is false; weight 1 on completion and eos. DataError
// when there are more than `max_length` tokens, eos included; `where` begins its message.
TokenSequence Tokenize(const Tokenizer& tokenizer, const Example& example, int64_t max_length,
                       const std::string& where, bool with_end = true);

// Which sequences share a pack: best-fit decreasing into packs of at most `pack_tokens`; the result
// depends on the lengths only.
std::vector<std::vector<int64_t>> BestFitPack(const std::vector<int64_t>& lengths,
                                              int64_t pack_tokens);
// Lays sequences end to end. Weights are copied and not normalised.
TokenBatch MakeBatch(const std::vector<const TokenSequence*>& sequences);
// One token of weight 0: for a rank or a schedule that wants a batch where there is no sequence.
TokenBatch WeightlessBatch(const Tokenizer& tokenizer);
// Packs split over `ranks` so that each has the same number and nearly the same tokens; a pure
// function of the lengths. Entry [rank][microbatch] is a pack, or −1 where the packs do not split
// evenly.
std::vector<std::vector<int64_t>> BalancePacks(const std::vector<int64_t>& pack_tokens, int ranks);

// Divides the weights of a step's batches by the sum of the weights over all ranks: a token mean.
void NormalizeLossWeights(std::vector<TokenBatch>* batches, double total_weight);

struct LoaderState {
  int64_t next_index = 0;  // of the epoch's seeded order
  int64_t epoch = 0;
};
// Step batches of a global number of packs. What is in a step, and how it is packed, depends on the
// seed only; the layout decides which rank gets which pack. A finite source is shuffled anew each
// epoch; an endless one is taken as it comes. Sources of up to 50,000 examples are checked whole at
// construction, so that one too long is an error before training starts. Not thread safe.
class DataLoader {
 public:
  struct Options {
    int64_t packs = 16;  // per step, over all ranks
    int64_t pack_tokens = 1024;
    int64_t max_length = 1024;   // tokens of a sequence, eos included
    bool drop_too_long = false;  // else a sequence over `max_length` is a DataError
    bool with_end = true;        // eos behind each example
    uint64_t seed = 0;
    int dp = 1, dp_rank = 0;
    bool repeat = true;  // epochs without end; else stops after `epochs`
    int64_t epochs = 1;
  };
  DataLoader(std::shared_ptr<ExampleSource> source, std::shared_ptr<const Tokenizer> tokenizer,
             Options options);
  ~DataLoader();
  DataLoader(DataLoader&&) noexcept;
  DataLoader& operator=(DataLoader&&) noexcept;

  struct StepData {
    // This rank's, a pack each; the same number on every rank. A rank for which there was no pack
    // (only where a step has fewer sequences than packs) gets one token of weight 0.
    std::vector<TokenBatch> microbatches;
    int64_t tokens = 0;  // of the whole step, all ranks
    bool end = false;    // no more data: microbatches is empty
  };
  // Weights are normalised to a global token mean.
  StepData Next();

  // The steps that a finite source makes, without batches: tokens of its examples that are inputs
  // (0: dropped), which ranks may share among them; and how often Next gives a step of them.
  std::vector<int32_t> Lengths(int64_t begin, int64_t end, ThreadPool& pool) const;
  int64_t CountSteps(const std::vector<int32_t>& lengths) const;
  LoaderState state() const;
  // DataError on a position that the source does not have.
  void set_state(const LoaderState& state);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::data
