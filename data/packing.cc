#include "data/packing.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "runtime/error.h"

namespace hone::data {
namespace {

// Indices by falling value; equal values keep their order.
std::vector<int64_t> Decreasing(const std::vector<int64_t>& values) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace

TokenSequence Tokenize(const Tokenizer& tokenizer, const Example& example, int64_t max_length,
                       const std::string& where, bool with_end) {
  Check<ConfigError>(!with_end || tokenizer.eos_id() >= 0,
                     "[tokenize] the tokenizer names no end-of-text token; give eos_token in "
                     "tokenizer_config.json");
  TokenSequence sequence;
  sequence.tokens = tokenizer.Encode(example.prompt);
  size_t prompt = sequence.tokens.size();
  std::vector<int32_t> completion = tokenizer.Encode(example.completion);
  sequence.tokens.insert(sequence.tokens.end(), completion.begin(), completion.end());
  if (with_end) sequence.tokens.push_back(tokenizer.eos_id());
  int64_t length = static_cast<int64_t>(sequence.tokens.size());
  Check<DataError>(length >= 2, "[tokenize] {}: the example is empty", where);
  Check<DataError>(
      length <= max_length,
      "[tokenize] {}: {} tokens (prompt {}, the end token included) do not fit into {}; "
      "raise the length limit or shorten the example",
      where, length, prompt, max_length);
  sequence.weight.assign(sequence.tokens.size(), 1.0f);
  std::fill_n(sequence.weight.begin(), prompt, 0.0f);
  return sequence;
}

std::vector<std::vector<int64_t>> BestFitPack(const std::vector<int64_t>& lengths,
                                              int64_t pack_tokens) {
  std::vector<std::vector<int64_t>> packs;
  std::multimap<int64_t, size_t> by_room;  // free tokens → pack; equal room: the older pack first
  for (int64_t i : Decreasing(lengths)) {
    int64_t length = lengths[static_cast<size_t>(i)];
    Check<DataError>(length <= pack_tokens,
                     "[pack] sequence {} has {} tokens, a pack has room for {}", i, length,
                     pack_tokens);
    auto fit = by_room.lower_bound(length);
    size_t pack = packs.size();
    int64_t room = pack_tokens;
    if (fit == by_room.end()) {
      packs.emplace_back();
    } else {
      room = fit->first;
      pack = fit->second;
      by_room.erase(fit);
    }
    packs[pack].push_back(i);
    by_room.emplace(room - length, pack);
  }
  return packs;
}

TokenBatch MakeBatch(const std::vector<const TokenSequence*>& sequences) {
  TokenBatch batch;
  batch.cu_seqlens.push_back(0);
  for (const TokenSequence* sequence : sequences) {
    const auto& tokens = sequence->tokens;
    Check(tokens.size() >= 2 && sequence->weight.size() == tokens.size(),
          "[make_batch] a sequence has {} tokens and {} weights", tokens.size(),
          sequence->weight.size());
    int32_t inputs = static_cast<int32_t>(tokens.size()) - 1;
    batch.token_T.insert(batch.token_T.end(), tokens.begin(), tokens.end() - 1);
    batch.target_T.insert(batch.target_T.end(), tokens.begin() + 1, tokens.end());
    batch.loss_weight_T.insert(batch.loss_weight_T.end(), sequence->weight.begin() + 1,
                               sequence->weight.end());
    for (int32_t p = 0; p < inputs; ++p) batch.position_T.push_back(p);
    batch.cu_seqlens.push_back(batch.cu_seqlens.back() + inputs);
  }
  return batch;
}

TokenBatch WeightlessBatch(const Tokenizer& tokenizer) {
  const int32_t token = std::max(0, tokenizer.eos_id());  // some have no end of text
  TokenSequence one{{token, token}, {0.0f, 0.0f}};
  return MakeBatch({&one});
}

std::vector<std::vector<int64_t>> BalancePacks(const std::vector<int64_t>& pack_tokens, int ranks) {
  Check<ConfigError>(ranks >= 1, "[balance_packs] {} ranks", ranks);
  size_t count = static_cast<size_t>(ranks);
  size_t each = (pack_tokens.size() + count - 1) / count;
  std::vector<std::vector<int64_t>> assigned(count);
  std::vector<int64_t> load(count, 0);
  for (int64_t pack : Decreasing(pack_tokens)) {
    size_t lightest = count;
    for (size_t r = 0; r < count; ++r) {
      if (assigned[r].size() == each) continue;
      if (lightest == count || load[r] < load[lightest]) lightest = r;
    }
    assigned[lightest].push_back(pack);
    load[lightest] += pack_tokens[static_cast<size_t>(pack)];
  }
  for (auto& packs : assigned) {
    std::sort(packs.begin(), packs.end());
    packs.resize(each, -1);
  }
  return assigned;
}

void NormalizeLossWeights(std::vector<TokenBatch>* batches, double total_weight) {
  if (total_weight == 0) return;
  for (TokenBatch& batch : *batches) {
    for (float& weight : batch.loss_weight_T) {
      weight = static_cast<float>(static_cast<double>(weight) / total_weight);
    }
  }
}

}  // namespace hone::data
