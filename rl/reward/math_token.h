// Mathematical text, LaTeX or plain, as tokens.
#pragma once

#include <cctype>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hone::rl {

inline bool IsDigit(char c) { return c >= '0' && c <= '9'; }
inline bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

struct MathToken {
  enum class Kind {
    kNumber,    // digits with at most one point; thousands separators removed
    kVariable,  // one letter, or a LaTeX command that names a symbol ("\theta")
    kWord,      // text: \text{…}, a unit, a word of a sentence
    kFunction,  // sin, log, …
    kSymbol  // anything else, by its ASCII name: + - * / ^ _ ( ) [ ] { } | ! , and = < <= > >= !=
             // ~ in cup pm mp frac sqrt root % \{ \} & \\ begin end
  };
  Kind kind;
  std::string text;
  bool spaced = false;  // white space stood before it
  bool Is(std::string_view symbol) const { return kind == Kind::kSymbol && text == symbol; }
};

// Without decoration (\left, spacing, currency, degree signs). Nothing when there is a character
// that mathematics does not have, or more than kMaxMathBytes of text.
inline constexpr size_t kMaxMathBytes = 4000;
std::optional<std::vector<MathToken>> TokeniseMath(std::string_view text);

// The text between `{` at `open` and its partner; `*end` becomes the index after the partner. An
// unclosed brace ends with the text.
std::string_view BracedText(std::string_view text, size_t open, size_t* end);

}  // namespace hone::rl
