#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/bpe/regex.h"

#include <fmt/format.h>
#include <pcre2.h>

#include <cctype>

#include "runtime/error.h"

namespace hone::data {
namespace {

// Unicode's White_Space, which is what Oniguruma's \s is; PCRE2's has U+180E as well.
constexpr std::string_view kSpaces =
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"
    "\\x{3000}";

std::string Rewrite(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      char next = pattern[++i];
      if (next == 's') {
        out += in_class ? std::string(kSpaces) : fmt::format("[{}]", kSpaces);
      } else if (next == 'S' && !in_class) {
        out += fmt::format("[^{}]", kSpaces);
      } else {
        out += {c, next};
      }
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
    } else if (c == ']' && in_class) {
      in_class = false;
    }
    out += c;
  }
  return out;
}

// What matching needs besides the pattern; one for each thread.
struct Scratch {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(64 << 10, 16 << 20, nullptr);
  Scratch() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
};

std::string Describe(int error) {
  unsigned char text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Regex::Impl {
  pcre2_code* code = nullptr;
  ~Impl() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, const std::string& where)
    : impl_(std::make_unique<Impl>()) {
  std::string rewritten = Rewrite(pattern);
  int error = 0;
  size_t offset = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  impl_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(rewritten.data()), rewritten.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, context);
  pcre2_compile_context_free(context);
  Check<DataError>(impl_->code != nullptr, "{}: the pattern '{}' does not compile: {} at byte {}",
                   where, pattern, impl_->code ? "" : Describe(error), offset);
  // Where there is no JIT, pcre2_match interprets.
  pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE);
}

Regex::~Regex() = default;

void Regex::FindAll(std::string_view text, std::vector<std::pair<size_t, size_t>>* matches) const {
  thread_local Scratch scratch;
  matches->clear();
  for (size_t at = 0; at < text.size();) {
    int found = pcre2_match(impl_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                            PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, scratch.match, scratch.context);
    if (found == PCRE2_ERROR_NOMATCH) return;
    Check(found >= 0, "[regex] matching {} bytes failed: {}", text.size(), Describe(found));
    const size_t* ends = pcre2_get_ovector_pointer(scratch.match);
    matches->emplace_back(ends[0], ends[1]);
    at = ends[1];
  }
}

std::string LiteralPattern(std::string_view text) {
  std::string out;
  for (char c : text) {
    bool plain = (c & 0x80) != 0 || std::isalnum(static_cast<unsigned char>(c)) != 0;
    if (!plain) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace hone::data
