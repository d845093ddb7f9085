#include "rl/reward/math_token.h"

#include <algorithm>
#include <array>
#include <utility>

namespace hone::rl {
namespace {

using Kind = MathToken::Kind;
using Pair = std::pair<std::string_view, std::string_view>;

// Characters beyond ASCII, and what they are in LaTeX.
constexpr Pair kUnicode[] = {
    {"−", "-"},       {"–", "-"},         {"×", "*"},  {"·", "*"},  {"÷", "/"},     {"π", "\\pi "},
    {"√", "\\sqrt "}, {"∞", "\\infty "},  {"≤", "<="}, {"≥", ">="}, {"≠", "!="},    {"≈", "~"},
    {"²", "^2"},      {"³", "^3"},        {"°", ""},   {"€", ""},   {"£", ""},      {"¥", ""},
    {"，", ","},      {"。", " "},        {"（", "("}, {"）", ")"}, {"±", "\\pm "}, {"∪", "\\cup "},
    {"∈", "\\in "},   {"½", "\\frac12 "}, {"：", ":"}, {"；", ";"}, {"、", ","},    {"％", "%"},
    {"\u00a0", " "}};

// Commands that stand for a symbol; "" drops them, " " parts what surrounds them.
constexpr Pair kCommands[] = {
    {"frac", "frac"},   {"dfrac", "frac"},  {"tfrac", "frac"}, {"cfrac", "frac"},
    {"sqrt", "sqrt"},   {"cdot", "*"},      {"times", "*"},    {"ast", "*"},
    {"div", "/"},       {"pm", "pm"},       {"mp", "mp"},      {"leq", "<="},
    {"le", "<="},       {"leqslant", "<="}, {"lt", "<"},       {"geq", ">="},
    {"ge", ">="},       {"geqslant", ">="}, {"gt", ">"},       {"neq", "!="},
    {"ne", "!="},       {"approx", "~"},    {"simeq", "~"},    {"in", "in"},
    {"cup", "cup"},     {"lor", "and"},     {"land", "and"},   {"vee", "and"},
    {"wedge", "and"},   {"lbrace", "\\{"},  {"rbrace", "\\}"}, {"lvert", "|"},
    {"rvert", "|"},     {"vert", "|"},      {"mid", "|"},      {"left", ""},
    {"right", ""},      {"big", ""},        {"Big", ""},       {"bigg", ""},
    {"Bigg", ""},       {"bigl", ""},       {"bigr", ""},      {"displaystyle", ""},
    {"limits", ""},     {"quad", " "},      {"qquad", " "},    {"circ", "°"},
    {"degree", "°"},    {"dots", "…"},      {"ldots", "…"},    {"cdots", "…"},
    {"begin", "begin"}, {"end", "end"},     {"percent", "%"},  {"mathrm", ""},
    {"mathbf", ""},     {"boldsymbol", ""}, {"mathit", ""},    {"operatorname", ""}};

constexpr std::string_view kFunctions[] = {"sin", "cos",    "tan",    "cot",    "sec",
                                           "csc", "arcsin", "arccos", "arctan", "ln",
                                           "log", "exp",    "sinh",   "cosh",   "tanh"};
constexpr std::string_view kTextCommands[] = {"text", "textbf", "textit", "textrm", "mbox", "hbox"};
// Units and words of two letters that are no product of variables.
constexpr std::string_view kShortWords[] = {"cm", "mm", "km", "kg", "mg", "ml", "ft", "in", "lb",
                                            "oz", "hr", "am", "pm", "mi", "yd", "is", "no", "of",
                                            "if", "to", "it", "we", "so", "be", "at", "by"};

template <class Range>
bool Has(const Range& range, std::string_view word) {
  return std::find(std::begin(range), std::end(range), word) != std::end(range);
}

std::string ReplaceUnicode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Pair* found = nullptr;
    if (static_cast<unsigned char>(text[i]) >= 0x80) {
      for (const Pair& p : kUnicode) {
        if (text.substr(i, p.first.size()) == p.first) found = &p;
      }
    }
    if (found) {
      out += found->second;
      i += found->first.size();
    } else {
      out += text[i++];
    }
  }
  return out;
}

class Tokeniser {
 public:
  Tokeniser(std::string_view text, std::vector<MathToken>* out, bool in_text)
      : text_(text), out_(*out), in_text_(in_text) {}

  bool Run() {
    while (at_ < text_.size()) {
      char c = text_[at_];
      if (std::isspace(static_cast<unsigned char>(c)) || c == '~') {
        spaced_ = true;
        ++at_;
      } else if (IsDigit(c) || (c == '.' && IsDigit(Peek(1)))) {
        Number();
      } else if (c == '\\') {
        if (!Command()) return false;
      } else if (IsLetter(c)) {
        Letters();
      } else if (static_cast<unsigned char>(c) >= 0x80) {
        size_t begin = at_;
        while (at_ < text_.size() && static_cast<unsigned char>(text_[at_]) >= 0x80) ++at_;
        Emit(Kind::kWord, text_.substr(begin, at_ - begin));
      } else if (!Punctuation(c)) {
        return false;
      }
    }
    return true;
  }

 private:
  char Peek(size_t k) const { return at_ + k < text_.size() ? text_[at_ + k] : '\0'; }

  void Emit(Kind kind, std::string_view text) {
    out_.push_back({kind, std::string(text), spaced_});
    spaced_ = false;
    if (kind != Kind::kSymbol) return;
    if (text == "(" || text == "[" || text == "\\{" || text == "{") ++depth_;
    if (text == ")" || text == "]" || text == "\\}" || text == "}") --depth_;
  }

  // How many characters from `at` separate two groups of digits: "," and " " (a choice that holds
  // for the whole number), and "{,}" or ",\!" which cannot be anything else.
  size_t Separator(size_t at, char* style) const {
    auto groups = [&](size_t digits) {
      for (size_t k = 0; k < 3; ++k) {
        if (digits + k >= text_.size() || !IsDigit(text_[digits + k])) return false;
      }
      return digits + 3 >= text_.size() || !IsDigit(text_[digits + 3]);
    };
    for (std::string_view s : {"{,}", ",\\! ", ",\\!"}) {
      if (text_.substr(at, s.size()) == s && groups(at + s.size())) return s.size();
    }
    bool plain = depth_ == 0 && at < text_.size() && (text_[at] == ',' || text_[at] == ' ') &&
                 (*style == '\0' || *style == text_[at]);
    if (!plain || !groups(at + 1)) return 0;
    *style = text_[at];
    return 1;
  }

  void Number() {
    std::string digits;
    size_t begin = at_;
    char style = '\0';
    bool grouped = false;
    while (IsDigit(Peek(0))) {
      digits += text_[at_++];
      if (IsDigit(Peek(0)) || digits[0] == '0' || (at_ - begin > 3 && !grouped)) continue;
      size_t separator = Separator(at_, &style);
      grouped |= separator > 0;
      at_ += separator;
    }
    if (Peek(0) == '.' && (IsDigit(Peek(1)) || !IsLetter(Peek(1)))) {
      ++at_;
      if (IsDigit(Peek(0))) digits += '.';
      while (IsDigit(Peek(0))) digits += text_[at_++];
    }
    if (digits[0] == '.') digits = "0" + digits;
    Emit(Kind::kNumber, digits);
    ScientificExponent();
  }

  // 6.29e6 → 6.29 * 10 ^ ( 6 )
  void ScientificExponent() {
    size_t sign = Peek(1) == '+' || Peek(1) == '-' ? 1 : 0;
    if ((Peek(0) != 'e' && Peek(0) != 'E') || !IsDigit(Peek(1 + sign))) return;
    Emit(Kind::kSymbol, "*");
    Emit(Kind::kNumber, "10");
    Emit(Kind::kSymbol, "^");
    Emit(Kind::kSymbol, "{");
    if (sign == 1) Emit(Kind::kSymbol, text_.substr(at_ + 1, 1));
    at_ += 1 + sign;
    size_t begin = at_;
    while (IsDigit(Peek(0))) ++at_;
    Emit(Kind::kNumber, text_.substr(begin, at_ - begin));
    Emit(Kind::kSymbol, "}");
  }

  bool Command() {
    if (!IsLetter(Peek(1))) return Escape();
    size_t begin = ++at_;
    while (IsLetter(Peek(0))) ++at_;
    std::string_view name = text_.substr(begin, at_ - begin);
    if (Has(kTextCommands, name)) return Text();
    for (const Pair& p : kCommands) {
      if (p.first == name) return Replacement(p.second);
    }
    Emit(Has(kFunctions, name) ? Kind::kFunction : Kind::kVariable, name);
    return true;
  }

  bool Replacement(std::string_view symbol) {
    if (symbol == "begin" || symbol == "end") {  // the environment's name says nothing more
      size_t end = at_;
      if (Peek(0) == '{') BracedText(text_, at_, &end);
      at_ = end;
    }
    if (symbol == "°") {  // its circumflex goes with it
      bool braced = out_.size() > 1 && out_.back().Is("{");
      if (braced) out_.pop_back();
      if (!out_.empty() && out_.back().Is("^")) out_.pop_back();
      if (braced && Peek(0) == '}') ++at_;
      if (braced) --depth_;
    } else if (symbol.empty() || symbol == " ") {
      spaced_ |= symbol == " ";
      if (Peek(0) == '.') ++at_;  // \right.
    } else {
      Emit(Kind::kSymbol, symbol);
    }
    return true;
  }

  bool Escape() {
    char c = Peek(1);
    at_ += 2;
    if (c == '\\') {
      Emit(Kind::kSymbol, "\\\\");
    } else if (c == '{' || c == '}') {
      Emit(Kind::kSymbol, c == '{' ? "\\{" : "\\}");
    } else if (c == '%') {
      Emit(Kind::kSymbol, "%");
    } else if (c == '|') {
      Emit(Kind::kSymbol, "|");
    } else {
      spaced_ = true;  // \, \; \! \$ \( \) \[ \] and the like
    }
    return true;
  }

  bool Text() {
    size_t end = at_;
    while (Peek(0) == ' ') ++at_;
    if (Peek(0) != '{') return true;
    std::string_view inside = BracedText(text_, at_, &end);
    at_ = end;
    spaced_ = true;
    if (in_text_) return true;  // text within text
    return Tokeniser(inside, &out_, true).Run();
  }

  void Letters() {
    size_t begin = at_;
    while (IsLetter(Peek(0))) ++at_;
    std::string_view word = text_.substr(begin, at_ - begin);
    std::string lower(word);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (lower == "and" || lower == "or") return Emit(Kind::kSymbol, "and");
    if (lower == "percent" || lower == "pct") return Emit(Kind::kSymbol, "%");
    if (lower == "degrees" || lower == "degree") return;
    if (lower == "pi" || lower == "sqrt") {
      return Emit(lower == "pi" ? Kind::kVariable : Kind::kSymbol, lower);
    }
    if (lower == "infty" || lower == "infinity" || lower == "inf") {
      return Emit(Kind::kVariable, "infty");
    }
    if (Has(kFunctions, lower)) return Emit(Kind::kFunction, lower);
    bool parted = spaced_ || begin == 0;
    bool is_word = in_text_ || (word.size() > 2 && parted) || Has(kShortWords, lower);
    if (is_word) return Emit(Kind::kWord, word);
    for (char c : word) Emit(Kind::kVariable, std::string(1, c));
  }

  bool Punctuation(char c) {
    static constexpr std::string_view kPairs[] = {"<=", ">=", "!=", "=="};
    for (std::string_view p : kPairs) {
      if (text_.substr(at_, 2) != p) continue;
      at_ += 2;
      Emit(Kind::kSymbol, p == "==" ? "=" : p);
      return true;
    }
    ++at_;
    if (c == '$' || c == '.' || c == '?') {
      spaced_ = true;
    } else if (c == ';') {
      Emit(Kind::kSymbol, ",");
    } else if (c == '*' && Peek(0) == '*') {
      ++at_;
      Emit(Kind::kSymbol, "^");
    } else if (std::string_view("+-*/^_()[]{}|!,:=<>%&'").find(c) != std::string_view::npos) {
      Emit(Kind::kSymbol, std::string(1, c));
    } else {
      return false;
    }
    return true;
  }

  std::string_view text_;
  std::vector<MathToken>& out_;
  bool in_text_;
  size_t at_ = 0;
  bool spaced_ = false;
  int depth_ = 0;  // of brackets: "(1,000)" is a pair
};

}  // namespace

std::string_view BracedText(std::string_view text, size_t open, size_t* end) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      *end = i + 1;
      return text.substr(open + 1, i - open - 1);
    }
  }
  *end = text.size();
  return text.substr(std::min(open + 1, text.size()));
}

std::optional<std::vector<MathToken>> TokeniseMath(std::string_view text) {
  if (text.size() > kMaxMathBytes) return std::nullopt;
  std::vector<MathToken> tokens;
  std::string plain = ReplaceUnicode(text);
  if (!Tokeniser(plain, &tokens, false).Run()) return std::nullopt;
  return tokens;
}

}  // namespace hone::rl
