#include "rl/reward/verifier.h"

#include <algorithm>
#include <cctype>
#include <iterator>

#include "rl/reward/shaping.h"
#include "rl/reward/story_rule.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

std::string_view Trim(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin, end - begin + 1);
}

// Between the first `open` and the first `close` after it; whole rest where there is no close.
bool Between(std::string_view text, std::string_view open, std::string_view close,
             std::string* inside) {
  size_t begin = text.find(open);
  if (begin == std::string_view::npos) return false;
  begin += open.size();
  size_t end = std::min(text.find(close, begin), text.size());
  *inside = std::string(text.substr(begin, end - begin));
  return true;
}

constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
constexpr std::string_view kAnswer = "<answer>", kAnswerEnd = "</answer>";

Verdict OfMatch(MathMatch match, const std::string& answer, const std::string& gold) {
  std::string detail = fmt::format("answer '{}' against '{}'", answer, gold);
  switch (match) {
    case MathMatch::kEqual:
      return {Outcome::kCorrect, 1, detail};
    case MathMatch::kDifferent:
      return {Outcome::kWrong, 0, detail};
    case MathMatch::kUnparseable:
      return {Outcome::kUnparseable, 0, detail};
  }
  return {};
}

bool IsWordCharacter(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '\''; }

// Where letters A–J stand by themselves in `text` from `begin` on. A plain "I" is a pronoun.
std::vector<size_t> LoneLetters(std::string_view text, size_t begin) {
  std::vector<size_t> found;
  for (size_t i = begin; i < text.size(); ++i) {
    if (text[i] < 'A' || text[i] > 'J') continue;
    bool joined = (i > 0 && IsWordCharacter(text[i - 1])) ||
                  (i + 1 < text.size() && IsWordCharacter(text[i + 1]));
    bool pronoun = text[i] == 'I' && i + 1 < text.size() && text[i + 1] == ' ';
    if (!joined && !pronoun) found.push_back(i);
  }
  return found;
}

// The letter that an answer chooses: in \boxed{}, at its beginning ("B."), after the last
// "answer is", or else the last one.
std::string ChoiceOf(std::string_view answer) {
  auto letter = [&](size_t at) { return std::string(1, answer[at]); };
  size_t boxed = answer.rfind("\\boxed{");
  if (boxed != std::string_view::npos) {
    std::vector<size_t> inside = LoneLetters(answer, boxed);
    if (!inside.empty()) return letter(inside.front());
  }
  std::vector<size_t> all = LoneLetters(answer, 0);
  if (all.empty()) return "";
  bool begins = all[0] == answer.find_first_not_of(" (*\n");
  bool marked = all[0] + 1 == answer.size() ||
                std::string_view(".):,\n").find(answer[all[0] + 1]) != std::string_view::npos;
  if (begins && marked) return letter(all[0]);
  for (std::string_view phrase : {"answer is", "Answer is", "answer:", "Answer:", "答案"}) {
    size_t at = answer.rfind(phrase);
    if (at == std::string_view::npos) continue;
    std::vector<size_t> after = LoneLetters(answer, at + phrase.size());
    if (!after.empty()) return letter(after.front());
  }
  return letter(begins ? all.front() : all.back());
}

// Words, lower-cased, without punctuation and articles.
std::vector<std::string> PlainWords(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  auto end_word = [&] {
    if (!word.empty() && word != "a" && word != "an" && word != "the") words.push_back(word);
    word.clear();
  };
  for (char c : text) {
    unsigned char byte = static_cast<unsigned char>(c);
    if (std::isspace(byte)) {
      end_word();
    } else if (!std::ispunct(byte)) {
      word += static_cast<char>(std::tolower(byte));
    }
  }
  end_word();
  return words;
}

// Harmonic mean of precision and recall over the two bags of words.
double WordF1(std::string_view answer, std::string_view gold) {
  std::vector<std::string> a = PlainWords(answer), g = PlainWords(gold), common;
  std::sort(a.begin(), a.end());
  std::sort(g.begin(), g.end());
  std::set_intersection(a.begin(), a.end(), g.begin(), g.end(), std::back_inserter(common));
  size_t total = a.size() + g.size();
  return total == 0 ? 1.0 : 2.0 * static_cast<double>(common.size()) / static_cast<double>(total);
}

Verdict OfScore(double score, const std::string& answer, const std::string& gold) {
  return {score >= 0.5 ? Outcome::kCorrect : Outcome::kWrong, score,
          fmt::format("answer '{}' against '{}'", answer, gold)};
}

}  // namespace

ParsedCompletion ParseCompletion(std::string_view text) {
  ParsedCompletion p;
  p.text = text;
  std::string_view body = Trim(text);
  bool has_thinking = Between(body, kThink, kThinkEnd, &p.thinking);
  p.has_answer = Between(body, kAnswer, kAnswerEnd, &p.answer);
  bool once = Count(body, kThink) == 1 && Count(body, kThinkEnd) == 1 &&
              Count(body, kAnswer) == 1 && Count(body, kAnswerEnd) == 1;
  if (!once || !has_thinking) return p;
  size_t think_end = body.find(kThinkEnd), answer = body.find(kAnswer);
  bool ordered = body.compare(0, kThink.size(), kThink) == 0 && think_end < answer &&
                 body.size() >= kAnswerEnd.size() &&
                 body.compare(body.size() - kAnswerEnd.size(), kAnswerEnd.size(), kAnswerEnd) == 0;
  if (!ordered) return p;
  size_t gap = think_end + kThinkEnd.size();
  p.well_formed = Trim(body.substr(gap, answer - gap)).empty();
  return p;
}

const std::vector<std::string>& VerifierNames() {
  static const std::vector<std::string> names = {"math",   "exact",    "text",  "f1",
                                                 "choice", "contains", "story", "none"};
  return names;
}

Verdict Verify(const std::string& verifier, const ParsedCompletion& completion,
               const std::string& gold) {
  if (verifier == "none") return {Outcome::kCorrect, 0, "nothing to check"};
  if (verifier == "story") return VerifyStory(completion.text, gold);
  if (!completion.has_answer) return {Outcome::kUnparseable, 0, "there is no <answer>"};
  std::string answer(Trim(completion.answer));
  if (verifier == "math") return OfMatch(CompareMath(answer, gold), answer, gold);
  if (verifier == "f1") return OfScore(WordF1(answer, gold), answer, gold);
  bool right = false;
  if (verifier == "exact") {
    right = answer == Trim(gold);
  } else if (verifier == "text") {
    right = PlainWords(answer) == PlainWords(gold);
  } else if (verifier == "contains") {
    right = answer.find(Trim(gold)) != std::string::npos;
  } else if (verifier == "choice") {
    std::string choice = ChoiceOf(answer);
    if (choice.empty()) return {Outcome::kUnparseable, 0, fmt::format("no choice in '{}'", answer)};
    right = choice == ChoiceOf(gold);
  } else {
    throw ConfigError(fmt::format("[verify] there is no verifier '{}'", verifier));
  }
  return OfScore(right ? 1.0 : 0.0, answer, gold);
}

const std::vector<std::string>& RewardNames() {
  static const std::vector<std::string> names = {
      "accuracy",  "format",          "language",    "length",       "repetition",  "cosine_length",
      "tag_count", "reasoning_steps", "story_words", "story_length", "story_ending"};
  return names;
}

RewardReply ScoreCompletion(const RewardRequest& request) {
  ParsedCompletion parsed = ParseCompletion(request.completion);
  Verdict verdict = Verify(request.verifier, parsed, request.gold);
  RewardReply reply;
  reply.outcome = verdict.outcome;
  reply.detail = verdict.detail;
  reply.rewards["accuracy"] = verdict.score;
  reply.rewards["format"] = parsed.well_formed && request.finished ? 1.0 : 0.0;
  reply.rewards["length"] = request.finished ? 1.0 : 0.0;
  reply.rewards["repetition"] = RepetitionPenalty(request.completion, 3);
  reply.rewards["cosine_length"] = CosineLength(verdict.outcome == Outcome::kCorrect,
                                                request.completion_tokens, request.max_new_tokens);
  reply.rewards["tag_count"] = TagCount(request.completion);
  reply.rewards["reasoning_steps"] =
      ReasoningSteps(parsed.thinking.empty() ? request.completion : parsed.thinking);
  if (!request.language.empty()) {
    reply.rewards["language"] = LanguageShare(parsed.thinking, request.language);
  }
  if (request.verifier == "story") AddStoryRewards(request, &reply.rewards);
  return reply;
}

}  // namespace hone::rl
