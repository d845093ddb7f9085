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
  std::string text;  // all of it
};
ParsedCompletion ParseCompletion(std::string_view text);

struct Verdict {
  Outcome outcome = Outcome::kWrong;
  double score = 0;    // 1 correct, 0 otherwise; partial credit where a rule gives it
  std::string detail;  // for people: what was compared
};

// Names of answer rules; `gold` is the task's answer, and what is judged is <answer>…</answer>:
//   math      CompareMath
//   exact     the same text, space around it aside
//   text      the same words: case, punctuation and articles aside
//   f1        as text, but the score is the F1 of the two bags of words; correct from 0.5
//   choice    the same letter, A to J: "B", "(B)", "B. because …", "the answer is B"
//   contains  the gold stands somewhere in it
//   story     the whole completion is a story as the gold orders it (story_rule.h)
//   none      nothing to check: score 0
const std::vector<std::string>& VerifierNames();
// ConfigError on another name.
Verdict Verify(const std::string& verifier, const ParsedCompletion& completion,
               const std::string& gold);

// Whether two mathematical answers are the same. Either may be a sentence or a whole solution: the
// last \boxed{}, else what follows "the answer is", else the last formula or number counts.
// Understood are thousands commas, fractions, mixed numbers, decimals, percent, scientific
// notation, roots, π, e, i, trigonometry and logarithms, |x|, n!, variables, ±, lists and sets (in
// any order), tuples, intervals and their unions, equations, inequalities, matrices; units,
// currency and degree signs are dropped. 25% is 25 and 0.25. A decimal fraction equals a fraction
// or root that it is the correct rounding of, from four significant digits. kUnparseable: the gold
// is mathematics and the answer cannot be read as such.
enum class MathMatch { kEqual, kDifferent, kUnparseable };
MathMatch CompareMath(std::string_view answer, std::string_view gold);

// Share of the words of `text` that are in `language` ("en" "zh" "ko" "ja"), told by script [R1
// §2.3.2]. Han and kana count as a word a character, others by space; single letters and LaTeX
// commands are mathematics and count nowhere. A text without words counts as 1. Latin words with
// letters beyond A–Z are no English; other words of Latin languages cannot be told from it.
double LanguageShare(std::string_view text, std::string_view language);
const std::vector<std::string>& LanguageNames();

// What a reward config may name:
//   accuracy         the verifier's score
//   format           1 for exactly <think> … </think><answer> … </answer>, ended by itself
//   language         LanguageShare of the thinking, where the task names a language
//   length           1 when it ended by itself within the limit, 0 when it was cut
//   repetition       RepetitionPenalty of the text by words of three
//   cosine_length    CosineLength by tokens of the limit
//   tag_count        TagCount
//   reasoning_steps  ReasoningSteps of the thinking
//   story_words, story_length, story_ending   how far each demand on a story is kept
// Of stories `format` is IsStory instead, ended by itself.
const std::vector<std::string>& RewardNames();

struct RewardRequest {
  std::string completion;  // text, special tokens spelled out
  std::string verifier, gold, language;
  int64_t completion_tokens = 0, max_new_tokens = 0;
  bool finished = true;  // stopped by itself
  // Not to be judged: `completion` is a call, which this environment answers (turn_environment.h).
  std::string environment{};
};
struct RewardReply {
  Outcome outcome = Outcome::kWrong;
  std::map<std::string, double> rewards;  // every named reward, unweighted
  std::string detail;  // what was compared; or the environment's answer
};
RewardReply ScoreCompletion(const RewardRequest& request);

}  // namespace hone::rl
