// Which language a text is written in, by script.
#include <algorithm>

#include "rl/reward/verifier.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

// kEnglish: A–Z; kForeign: letters of any other script, and Latin ones that English does without.
enum class Script { kNone, kEnglish, kForeign, kHan, kKana, kHangul };

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
    unsigned char next = static_cast<unsigned char>(text[*at + static_cast<size_t>(k)]);
    if ((next >> 6) != 2) {
      ++*at;
      return 0xFFFD;
    }
    value = value << 6 | (next & 0x3F);
  }
  *at += static_cast<size_t>(length);
  return value;
}

// What is no letter beyond Latin-1: combining marks, punctuation, arrows, operators, full-width
// forms, mathematical letters, pictures.
bool IsSymbol(char32_t c) {
  auto in = [c](char32_t low, char32_t high) { return low <= c && c <= high; };
  return in(0x2B0, 0x36F) || in(0x2000, 0x2BFF) || in(0x2E00, 0x2E7F) || in(0x3000, 0x303F) ||
         in(0xE000, 0xF8FF) || in(0xFE00, 0xFE6F) || in(0xFF00, 0xFF65) || in(0xFFE0, 0xFFFF) ||
         c >= 0x1D000;
}

Script ScriptOf(char32_t c) {
  auto in = [c](char32_t low, char32_t high) { return low <= c && c <= high; };
  if (in('A', 'Z') || in('a', 'z')) return Script::kEnglish;
  if (c < 0xC0 || c == 0xD7 || c == 0xF7) return Script::kNone;
  if (in(0x4E00, 0x9FFF) || in(0x3400, 0x4DBF) || in(0xF900, 0xFAFF) || in(0x20000, 0x323AF) ||
      c == 0x3005) {
    return Script::kHan;
  }
  if (in(0x3041, 0x30FF) || in(0x31F0, 0x31FF) || in(0xFF66, 0xFF9D)) return Script::kKana;
  if (in(0xAC00, 0xD7A3) || in(0x1100, 0x11FF) || in(0x3130, 0x318F)) return Script::kHangul;
  return IsSymbol(c) ? Script::kNone : Script::kForeign;
}

bool EndsSentence(char32_t c) {
  return c == '\n' || c == '.' || c == '!' || c == '?' || c == 0x3002 || c == 0xFF01 || c == 0xFF1F;
}

struct WordCounts {
  int64_t english = 0, foreign = 0, hangul = 0, kana = 0;
  int64_t han_with_kana = 0, han_alone = 0;  // by whether their sentence has kana too
  int64_t total() const { return english + foreign + hangul + kana + han_with_kana + han_alone; }
};

// A run of letters or Hangul is a word, each Han or kana character is one. A single letter is a
// label or a variable, and a LaTeX command is mathematics: neither is a word of English.
class WordCounter {
 public:
  WordCounts Count(std::string_view text) {
    for (size_t at = 0; at < text.size();) Next(NextCharacter(text, &at));
    EndRun();
    EndSentence();
    return counts_;
  }

 private:
  void Next(char32_t c) {
    Script script = ScriptOf(c);
    bool letter = script == Script::kEnglish || script == Script::kForeign;
    bool goes_on = letter ? run_letters_ > 0 : script == Script::kHangul && in_hangul_;
    if (!goes_on) EndRun();
    if (letter) {
      ++run_letters_;
      run_foreign_ |= script == Script::kForeign;
      run_command_ |= previous_ == U'\\';
    }
    in_hangul_ = script == Script::kHangul;
    if (in_hangul_ && !goes_on) ++counts_.hangul;
    sentence_han_ += script == Script::kHan;
    sentence_kana_ += script == Script::kKana;
    if (EndsSentence(c)) EndSentence();
    previous_ = c;
  }
  void EndRun() {
    if (run_letters_ > 1 && !run_command_) ++(run_foreign_ ? counts_.foreign : counts_.english);
    run_letters_ = 0;
    run_foreign_ = run_command_ = false;
  }
  void EndSentence() {
    counts_.kana += sentence_kana_;
    (sentence_kana_ > 0 ? counts_.han_with_kana : counts_.han_alone) += sentence_han_;
    sentence_han_ = sentence_kana_ = 0;
  }

  WordCounts counts_;
  char32_t previous_ = 0;
  int64_t run_letters_ = 0, sentence_han_ = 0, sentence_kana_ = 0;
  bool run_foreign_ = false, run_command_ = false, in_hangul_ = false;
};

// Han characters in sentences without kana are Chinese, or Japanese titles and lists: Japanese
// where the text elsewhere writes as much kana as Japanese does.
int64_t JapaneseWords(const WordCounts& n) {
  bool mostly_kana = n.kana >= n.han_with_kana / 2 && n.kana > n.han_alone / 2;
  return n.kana + n.han_with_kana + (mostly_kana ? n.han_alone : 0);
}

}  // namespace

const std::vector<std::string>& LanguageNames() {
  static const std::vector<std::string> names = {"en", "zh", "ko", "ja"};
  return names;
}

double LanguageShare(std::string_view text, std::string_view language) {
  WordCounts counts = WordCounter().Count(text);
  int64_t own = 0;
  if (language == "en") {
    own = counts.english;
  } else if (language == "zh") {
    own = counts.han_alone;
  } else if (language == "ja") {
    own = JapaneseWords(counts);
  } else if (language == "ko") {
    own = counts.hangul;
  } else {
    throw ConfigError(
        fmt::format("[language] there is no language '{}'; one of en, zh, ko, ja", language));
  }
  if (counts.total() == 0) return 1;
  return static_cast<double>(own) / static_cast<double>(counts.total());
}

}  // namespace hone::rl
