// Regular expressions as tokenizer files spell them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hone::data {

// Unicode semantics, compiled once, matched by PCRE2's JIT. tokenizer.json patterns are written for
// Oniguruma; where PCRE2 reads them otherwise (\s, ^ and $) they are rewritten. Thread safe.
class Regex {
 public:
  // DataError, beginning with `where`, on a pattern that does not compile.
  Regex(const std::string& pattern, const std::string& where);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // All matches from left to right, none overlapping, as [begin, end). `text` is valid UTF-8.
  void FindAll(std::string_view text, std::vector<std::pair<size_t, size_t>>* matches) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A pattern that matches `text` itself.
std::string LiteralPattern(std::string_view text);

}  // namespace hone::data
