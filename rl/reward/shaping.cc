#include "rl/reward/shaping.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numbers>
#include <set>
#include <string>
#include <vector>

namespace hone::rl {
namespace {

// Lower-cased runs without space; characters of three bytes and more (Han, kana) stand alone.
std::vector<std::string> Words(std::string_view text) {
  std::vector<std::string> words;
  bool open = false;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0xE3 && c <= 0xE9) {  // U+3000 to U+9FFF
      words.emplace_back(text.substr(i, 3));
      i += std::min<size_t>(2, text.size() - 1 - i);
      open = false;
    } else if (std::isspace(c)) {
      open = false;
    } else {
      if (!open) words.emplace_back();
      words.back() += static_cast<char>(std::tolower(c));
      open = true;
    }
  }
  return words;
}

// Digits at `at`; how many.
size_t Digits(std::string_view text, size_t at) {
  size_t n = 0;
  while (at + n < text.size() && std::isdigit(static_cast<unsigned char>(text[at + n]))) ++n;
  return n;
}

size_t NumberedSteps(std::string_view text) {
  constexpr std::string_view kStep = "Step ";
  size_t n = 0;
  for (size_t at = text.find(kStep); at != std::string_view::npos; at = text.find(kStep, at + 1)) {
    size_t begin = at + kStep.size(), digits = Digits(text, begin);
    n += digits > 0 && text.substr(begin + digits, 1) == ":";
  }
  return n;
}

// Lines that begin with "3.", "-" or "*".
size_t ListLines(std::string_view text) {
  size_t n = 0;
  for (size_t line = 0; line < text.size();) {
    size_t digits = Digits(text, line);
    bool numbered = digits > 0 && text.substr(line + digits, 1) == ".";
    n += numbered || text[line] == '-' || text[line] == '*';
    line = std::min(text.find('\n', line), text.size() - 1) + 1;
  }
  return n;
}

}  // namespace

double RepetitionPenalty(std::string_view text, int n) {
  std::vector<std::string> words = Words(text);
  size_t length = static_cast<size_t>(n);
  if (words.size() < length) return 0;
  std::set<std::vector<std::string>> distinct;
  size_t all = words.size() - length + 1;
  for (size_t i = 0; i < all; ++i) {
    distinct.emplace(words.begin() + static_cast<std::ptrdiff_t>(i),
                     words.begin() + static_cast<std::ptrdiff_t>(i + length));
  }
  return -(1.0 - static_cast<double>(distinct.size()) / static_cast<double>(all));
}

double CosineLength(bool correct, int64_t tokens, int64_t limit) {
  double share = limit > 0 ? static_cast<double>(tokens) / static_cast<double>(limit) : 1.0;
  double fall = 0.25 * (1 + std::cos(std::clamp(share, 0.0, 1.0) * std::numbers::pi));
  return correct ? 0.5 + fall : -0.5 - fall;
}

size_t Count(std::string_view text, std::string_view what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string_view::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

double TagCount(std::string_view text) {
  double count = 0;
  for (std::string_view tag : {"<think>", "</think>", "<answer>", "</answer>"}) {
    count += Count(text, tag) == 1 ? 0.25 : 0.0;
  }
  return count;
}

double ReasoningSteps(std::string_view text) {
  size_t steps = NumberedSteps(text) + ListLines(text);
  for (std::string_view word : {"First,", "Second,", "Next,", "Finally,"})
    steps += Count(text, word);
  return std::min(1.0, static_cast<double>(steps) / 3);
}

}  // namespace hone::rl
