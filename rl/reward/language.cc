// Which language a text is written in, by script.
#include <algorithm>
#include <array>

#include "rl/reward/verifier.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

enum class Script { kOther, kLatin, kHan, kKana, kHangul };

// Decodes one UTF-8 character at `*at` and moves on; an invalid byte is one character of no script.
char32_t NextCharacter(std::string_view text, size_t* at) {
  unsigned char c = static_cast<unsigned char>(text[*at]);
  int length = c < 0x80 ? 1 : (c >> 5) == 6 ? 2 : (c >> 4) == 14 ? 3 : (c >> 3) == 30 ? 4 : 0;
  if (length == 0 || *at + static_cast<size_t>(length) > text.size()) {
    ++*at;
    return 0xFFFD;
  }
  char32_t value = length == 1 ? c : c & (0x7F >> length);
  for (int k = 1; k < length; ++k) {
    value = value << 6 | (static_cast<unsigned char>(text[*at + static_cast<size_t>(k)]) & 0x3F);
  }
  *at += static_cast<size_t>(length);
  return value;
}

Script ScriptOf(char32_t c) {
  auto in = [c](char32_t low, char32_t high) { return low <= c && c <= high; };
  if (in('A', 'Z') || in('a', 'z') || in(0xC0, 0x24F) || in(0x1E00, 0x1EFF)) return Script::kLatin;
  if (in(0x4E00, 0x9FFF) || in(0x3400, 0x4DBF) || in(0xF900, 0xFAFF) || in(0x20000, 0x323AF)) {
    return Script::kHan;
  }
  if (in(0x3041, 0x30FF) || in(0x31F0, 0x31FF) || in(0xFF66, 0xFF9D)) return Script::kKana;
  if (in(0xAC00, 0xD7A3) || in(0x1100, 0x11FF) || in(0x3130, 0x318F)) return Script::kHangul;
  return Script::kOther;
}

struct WordCounts {
  std::array<int64_t, 5> of{};
  int64_t total() const { return of[1] + of[2] + of[3] + of[4]; }
};

// A run of Latin letters or Hangul is a word, each Han or kana character is one. A single Latin
// letter is a label or a variable, not a word of English.
WordCounts CountWords(std::string_view text) {
  WordCounts counts;
  Script current = Script::kOther;
  int64_t length = 0;
  auto end_run = [&] {
    bool word = (current == Script::kLatin && length > 1) || current == Script::kHangul;
    if (word) ++counts.of[static_cast<int>(current)];
    length = 0;
  };
  for (size_t at = 0; at < text.size();) {
    Script script = ScriptOf(NextCharacter(text, &at));
    if (script != current) end_run();
    current = script;
    ++length;
    if (script == Script::kHan || script == Script::kKana) ++counts.of[static_cast<int>(script)];
  }
  end_run();
  return counts;
}

}  // namespace

const std::vector<std::string>& LanguageNames() {
  static const std::vector<std::string> names = {"en", "zh", "ko", "ja"};
  return names;
}

double LanguageShare(std::string_view text, std::string_view language) {
  WordCounts counts = CountWords(text);
  if (counts.total() == 0) return 1;
  auto of = [&](Script s) { return counts.of[static_cast<int>(s)]; };
  int64_t own = 0;
  if (language == "en") {
    own = of(Script::kLatin);
  } else if (language == "zh") {
    own = of(Script::kKana) == 0 ? of(Script::kHan) : 0;  // kanji among kana are Japanese
  } else if (language == "ja") {
    own = of(Script::kKana) > 0 ? of(Script::kHan) + of(Script::kKana) : 0;
  } else if (language == "ko") {
    own = of(Script::kHangul);
  } else {
    throw ConfigError(
        fmt::format("[language] there is no language '{}'; one of en, zh, ko, ja", language));
  }
  return static_cast<double>(own) / static_cast<double>(counts.total());
}

}  // namespace hone::rl
