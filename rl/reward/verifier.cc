#include "rl/reward/verifier.h"

#include <algorithm>

#include "runtime/error.h"

namespace hone::rl {
namespace {

std::string_view Trim(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin, end - begin + 1);
}

size_t Count(std::string_view text, std::string_view tag) {
  size_t n = 0;
  for (size_t at = text.find(tag); at != std::string_view::npos; at = text.find(tag, at + 1)) ++n;
  return n;
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

// The last letter A–E that stands by itself, or in \boxed{}; the answer may say "B", "(B)", "B.
// text".
std::string ChoiceOf(std::string_view answer) {
  std::string found;
  for (size_t i = 0; i < answer.size(); ++i) {
    char c = answer[i];
    if (c < 'A' || c > 'J') continue;
    auto letter = [&](size_t k) {
      return k < answer.size() && (std::isalnum(static_cast<unsigned char>(answer[k])) ||
                                   static_cast<unsigned char>(answer[k]) >= 0x80);
    };
    if ((i > 0 && letter(i - 1)) || letter(i + 1)) continue;
    found = std::string(1, c);
    if (i == 0) break;  // "B. because A …" means B
  }
  return found;
}

}  // namespace

ParsedCompletion ParseCompletion(std::string_view text) {
  ParsedCompletion p;
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
  static const std::vector<std::string> names = {"math", "exact", "choice", "contains", "none"};
  return names;
}

Verdict Verify(const std::string& verifier, const ParsedCompletion& completion,
               const std::string& gold) {
  if (verifier == "none") return {Outcome::kCorrect, 0, "nothing to check"};
  if (!completion.has_answer) return {Outcome::kUnparseable, 0, "there is no <answer>"};
  std::string answer(Trim(completion.answer));
  if (verifier == "math") return OfMatch(CompareMath(answer, gold), answer, gold);
  bool right = false;
  if (verifier == "exact") {
    right = answer == Trim(gold);
  } else if (verifier == "contains") {
    right = answer.find(Trim(gold)) != std::string::npos;
  } else if (verifier == "choice") {
    std::string choice = ChoiceOf(answer);
    if (choice.empty()) return {Outcome::kUnparseable, 0, fmt::format("no choice in '{}'", answer)};
    right = choice == Trim(gold);
  } else {
    throw ConfigError(fmt::format("[verify] there is no verifier '{}'", verifier));
  }
  return {right ? Outcome::kCorrect : Outcome::kWrong, right ? 1.0 : 0.0,
          fmt::format("answer '{}' against '{}'", answer, gold)};
}

const std::vector<std::string>& RewardNames() {
  static const std::vector<std::string> names = {"accuracy", "format", "language"};
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
  if (!request.language.empty()) {
    reply.rewards["language"] = LanguageShare(parsed.thinking, request.language);
  }
  return reply;
}

}  // namespace hone::rl
