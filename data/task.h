// Prompts with checkable answers, and worked examples: from generated families or from JSONL files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/config.h"

namespace hone::data {

// A prompt for RL, rejection sampling or evaluation.
struct Problem {
  std::string id;        // stable: family/hash or file:line
  std::string prompt;    // text as the model sees it (template applied)
  std::string answer;    // gold
  std::string verifier;  // "math" "exact" "choice" "contains" "none"; which rule checks the answer
  std::string language;  // target language of the thinking: "en" "zh" "ko" "ja" or "" for none
  std::string kind;      // "reasoning" or "general"
  int level = 0;         // difficulty of generated ones
};

// Text for SFT and pretraining: loss on `completion` only (pretraining text: prompt empty).
struct Example {
  std::string prompt, completion;
};

// What a reward model learns from. Pairwise: both completions, the first preferred. Pointwise: one
// of them is empty, and the other is labelled good (chosen) or bad (rejected).
struct Preference {
  std::string prompt, chosen, rejected;
  bool pairwise() const { return !chosen.empty() && !rejected.empty(); }
};

template <class Item>
class Source {
 public:
  virtual ~Source() = default;
  virtual int64_t size() const = 0;          // −1: endless
  virtual Item At(int64_t index) const = 0;  // a pure function of index
  // For errors: "train.jsonl:7", else "item 7".
  virtual std::string Where(int64_t index) const { return "item " + std::to_string(index); }
  // The sources that this one is put together from; none if it is a source of its own.
  virtual std::vector<const Source*> Parts() const { return {}; }
};
using ProblemSource = Source<Problem>;
using ExampleSource = Source<Example>;
using PreferenceSource = Source<Preference>;

// Sources are built from a config map such as
//   {family: chain, split: train, levels: [2, 5]}                       generated problems
//   {family: chain, text: thinking, fine: 0.5, mixed_language: 0.5}     generated text
//   {jsonl: "${HONE_DATA}/gsm8k/gsm8k_train.jsonl", prompt: question, answer_after: "#### "}
//   {mixture: [{weight: 0.2, …}, …]}    {concat: [{…}, …]}
// with the keys of docs/data.md. Everything generated is keyed by `seed`; train and held-out
// problems are disjoint by hash. A malformed JSONL line is a DataError with file:line.
std::unique_ptr<ProblemSource> MakeProblemSource(ConfigReader& config, uint64_t seed);
std::unique_ptr<ExampleSource> MakeExampleSource(ConfigReader& config, uint64_t seed);
std::unique_ptr<PreferenceSource> MakePreferenceSource(ConfigReader& config, uint64_t seed);

}  // namespace hone::data
