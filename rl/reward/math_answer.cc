// Whether two mathematical answers are the same: find the answer in each text, parse both, compare.
#include <algorithm>
#include <optional>

#include "rl/reward/math_structure.h"
#include "rl/reward/math_token.h"
#include "rl/reward/verifier.h"

namespace hone::rl {
namespace {

constexpr size_t kMaxBetweenBoxes = 60;

std::string Replaced(std::string text, std::string_view what, std::string_view by) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size()) {
    text.replace(at, what.size(), by);
  }
  return text;
}

// Whether what stands between two boxes only joins them: nothing, commas, "and", a few words.
bool Joins(std::string_view between) {
  if (between.size() > kMaxBetweenBoxes ||
      between.find_first_of("=.\n") != std::string_view::npos) {
    return false;
  }
  bool joint = between.find_first_not_of(" $") == std::string_view::npos;
  for (std::string_view word : {",", " and ", " or ", "{and}", "{or}"}) {
    joint |= between.find(word) != std::string_view::npos;
  }
  return joint;
}

// The contents of the last \boxed{…}, or of the last few when they stand in one list.
std::optional<std::string> Boxed(std::string_view text) {
  struct Box {
    size_t begin, end;
    std::string_view inside;
  };
  std::vector<Box> boxes;
  for (std::string_view command : {"\\boxed", "\\fbox"}) {
    for (size_t at = 0; (at = text.find(command, at)) != std::string_view::npos;) {
      size_t begin = at;
      at += command.size();
      while (at < text.size() && text[at] == ' ') ++at;
      if (at >= text.size() || text[at] != '{') continue;
      size_t end = at;
      std::string_view inside = BracedText(text, at, &end);
      boxes.push_back({begin, end, inside});
      at = end;
    }
    if (!boxes.empty()) break;
  }
  if (boxes.empty()) return std::nullopt;
  size_t first = boxes.size() - 1;
  while (first > 0 &&
         Joins(text.substr(boxes[first - 1].end, boxes[first].begin - boxes[first - 1].end))) {
    --first;
  }
  std::string joined(boxes[first].inside);
  for (size_t i = first + 1; i < boxes.size(); ++i) joined += ", " + std::string(boxes[i].inside);
  return joined;
}

// The last text between math delimiters.
std::optional<std::string> LastFormula(std::string_view text) {
  std::optional<std::string> last;
  size_t last_end = 0;
  auto search = [&](std::string_view open, std::string_view close) {
    for (size_t at = 0; (at = text.find(open, at)) != std::string_view::npos;) {
      size_t begin = at + open.size(), end = text.find(close, begin);
      if (end == std::string_view::npos) return;
      if (end > begin && end > last_end) {
        last = std::string(text.substr(begin, end - begin));
        last_end = end;
      }
      at = end + close.size();
    }
  };
  search("\\(", "\\)");
  search("\\[", "\\]");
  search(text.find("$$") == std::string_view::npos ? "$" : "$$",
         text.find("$$") == std::string_view::npos ? "$" : "$$");
  return last;
}

// What follows the last "answer is" or "answer:", to the sentence's end.
std::optional<std::string> AfterAnswerIs(std::string_view text) {
  size_t last = std::string_view::npos;
  for (std::string_view phrase : {"answer is", "Answer is", "answer:", "Answer:"}) {
    size_t at = text.rfind(phrase);
    if (at == std::string_view::npos) continue;
    at += phrase.size();
    if (last == std::string_view::npos || at > last) last = at;
  }
  if (last == std::string_view::npos) return std::nullopt;
  std::string_view rest = text.substr(last);
  rest.remove_prefix(std::min(rest.find_first_not_of(" :*\n"), rest.size()));
  size_t end = rest.find('\n');
  for (size_t dot = rest.find(". "); dot < end; dot = std::string_view::npos) end = dot;
  return std::string(rest.substr(0, end));
}

// The last number among words, with its sign where that cannot be a minus. Digits that belong to a
// word or a time of day are none.
std::optional<std::string> LastNumber(std::string_view text) {
  size_t end = text.size();
  for (;;) {
    while (end > 0 && !IsDigit(text[end - 1])) --end;
    if (end == 0) return std::nullopt;
    size_t begin = end - 1;
    auto inside = [&] {
      char c = text[begin - 1];
      bool joint = (c == '.' || c == ',' || c == '/') && begin > 1 && IsDigit(text[begin - 2]);
      return IsDigit(c) || joint || c == '.';
    };
    while (begin > 0 && inside()) --begin;
    char before = begin > 0 ? text[begin - 1] : ' ';
    if (before == '-' &&
        (begin == 1 || !std::isalnum(static_cast<unsigned char>(text[begin - 2])))) {
      --begin;
    }
    if (!IsLetter(before) && before != ':' && before != '_') {
      return std::string(text.substr(begin, end - begin));
    }
    end = begin;
  }
}

std::optional<std::vector<MathItem>> Parse(const std::string& text) {
  auto tokens = TokeniseMath(text);
  std::vector<MathItem> items;
  if (!tokens || !ParseMathList(*tokens, &items)) return std::nullopt;
  if (items.size() == 1 && items[0].kind == MathItem::Kind::kSet && items[0].label.empty()) {
    return std::vector<MathItem>(std::move(items[0].parts));
  }
  return items;
}

bool HasWords(const std::vector<MathItem>& items) {
  for (const MathItem& item : items) {
    if (item.kind == MathItem::Kind::kText) return true;
  }
  return false;
}

// What a text answers.
struct Answer {
  std::string text;  // the answer's own part of it
  std::optional<std::vector<MathItem>> items;
  bool is_math() const { return items && !HasWords(*items); }
};

Answer FindAnswer(std::string_view raw) {
  std::string text = Replaced(std::string(raw), "\\\\boxed", "\\boxed");
  if (text.find("\\begin") == std::string::npos) {
    // Backslashes doubled by a JSON writer; not the row breaks of a matrix.
    for (char c = 'a'; c <= 'z'; ++c) {
      text = Replaced(std::move(text), std::string("\\\\") + c, std::string("\\") + c);
    }
  }
  std::optional<std::string> boxed = Boxed(text);
  if (boxed) text = *boxed;
  Answer whole{text, Parse(text)};
  if (boxed || whole.is_math()) return whole;
  bool words = std::any_of(text.begin(), text.end(), [](char c) { return IsLetter(c) || c < 0; });
  if (!words) return whole;
  for (auto part : {AfterAnswerIs(text), LastFormula(text), LastNumber(text)}) {
    if (!part) continue;
    Answer found{*part, Parse(*part)};
    if (found.is_math()) return found;
  }
  return whole;
}

// Letters and digits as they stand, for answers that are not mathematics.
std::string Plain(std::string text) {
  for (std::string_view junk : {"\\textbf", "\\text", "\\mathrm", "\\mathbf", "\\left", "\\right",
                                "\\!", "\\,", "\\ ", "$"}) {
    text = Replaced(std::move(text), junk, "");
  }
  for (std::string_view fraction : {"\\dfrac", "\\tfrac"})
    text = Replaced(std::move(text), fraction, "\\frac");
  std::string plain;
  for (char c : text) {
    if (std::isspace(static_cast<unsigned char>(c)) || c == '{' || c == '}') continue;
    plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  while (!plain.empty() && (plain.back() == '.' || plain.back() == '\\')) plain.pop_back();
  if (plain.size() == 3 && plain[0] == '(' && plain[2] == ')') return plain.substr(1, 1);  // (C)
  return plain;
}

}  // namespace

MathMatch CompareMath(std::string_view answer, std::string_view gold) {
  Answer a = FindAnswer(answer), g = FindAnswer(gold);
  std::string plain_a = Plain(a.text), plain_g = Plain(g.text);
  if (plain_a.empty()) return MathMatch::kUnparseable;
  if (plain_a == plain_g) return MathMatch::kEqual;
  if (a.items && g.items && SameList(*a.items, *g.items)) return MathMatch::kEqual;
  bool unreadable = g.is_math() && !a.is_math();
  return unreadable ? MathMatch::kUnparseable : MathMatch::kDifferent;
}

}  // namespace hone::rl
