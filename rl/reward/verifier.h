// Rules that judge a completion: answers, format, language. Pure functions; where they may hang or
// crash they run in helper processes (verifier_pool.h).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rl/rollout/sample.h"

namespace hone::rl {

// The parts of "<think> … </think><answer> … </answer>".
struct ParsedCompletion {
  bool well_formed =
      false;  // exactly that form, each tag once, in order, nothing but space outside
  std::string thinking, answer;  // best effort when not well formed
  bool has_answer = false;
};
ParsedCompletion ParseCompletion(std::string_view text);

struct Verdict {
  Outcome outcome = Outcome::kWrong;
  double score = 0;    // 1 correct, 0 otherwise; partial credit where a rule gives it
  std::string detail;  // for people: what was compared
};

// Names of answer rules: "math" "exact" "choice" "contains" "none". ConfigError on another.
const std::vector<std::string>& VerifierNames();
Verdict Verify(const std::string& verifier, const ParsedCompletion& completion,
               const std::string& gold);

// Whether two mathematical answers are the same: integers with thousands commas, fractions,
// decimals, percent, simple LaTeX (\frac, \sqrt, \boxed, \text, degrees, units dropped, tuples,
// intervals).
enum class MathMatch { kEqual, kDifferent, kUnparseable };
MathMatch CompareMath(std::string_view answer, std::string_view gold);

// Share of the words of `text` written in the script of `language` ("en" "zh" "ko" "ja"; Han and
// kana count as a word a character, others by space); text without any letter counts as 1. [R1
// §2.3.2]
double LanguageShare(std::string_view text, std::string_view language);
const std::vector<std::string>& LanguageNames();

// What a reward config may name: accuracy format language length_penalty …
const std::vector<std::string>& RewardNames();

struct RewardRequest {
  std::string completion;  // text, special tokens spelled out
  std::string verifier, gold, language;
  int64_t completion_tokens = 0, max_new_tokens = 0;
  bool finished = true;  // stopped by itself
};
struct RewardReply {
  Outcome outcome = Outcome::kWrong;
  std::map<std::string, double> rewards;  // every named reward, unweighted
  std::string detail;
};
RewardReply ScoreCompletion(const RewardRequest& request);

}  // namespace hone::rl
