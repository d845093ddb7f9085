// Parsing JSON that comes from outside. Only for .cc files: brings in nlohmann/json.
//
// The parser itself stands any depth, but what copies, compares or writes a value calls itself once
// a level: so a short text of brackets could use up the stack.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "runtime/error.h"

namespace hone::runtime {

constexpr int kDeepestJson = 100;

// True of JSON with more than kDeepestJson levels of arrays and objects; of other text either.
inline bool IsDeepJson(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      quoted = !quoted;
    } else if (quoted) {
      i += c == '\\';
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepestJson) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

// A discarded value where it is no JSON, or nested too deeply.
template <class Json = nlohmann::json>
Json TryParseJson(std::string_view text) {
  if (IsDeepJson(text)) return Json(Json::value_t::discarded);
  return Json::parse(text, nullptr, /*allow_exceptions=*/false);
}

// E, beginning with `where`, there.
template <class E = DataError, class Json = nlohmann::json>
Json ParseJson(std::string_view text, const std::string& where) {
  Check<E>(!IsDeepJson(text), "{}: JSON nested deeper than {} levels", where, kDeepestJson);
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::exception& e) {  // a number may be out of range, too
    throw E(fmt::format("{}: not JSON: {}", where, e.what()));
  }
}

}  // namespace hone::runtime
