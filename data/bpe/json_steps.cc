#include "data/bpe/json_steps.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/bpe/json_access.h"
#include "data/bpe/regex.h"
#include "data/text.h"

namespace hone::data {

using nlohmann::json;

const json& JsonList(const json& node, const char* key, const std::string& where) {
  const json& list = Need(node, key, where);
  Check<DataError>(list.is_array(), "{}.{}: a JSON {} where a list was expected", where, key,
                   list.type_name());
  return list;
}
[[noreturn]] void UnsupportedJson(const std::string& where, const std::string& what,
                                  const std::string& known) {
  throw DataError(fmt::format("{}: '{}' is not supported; what is: {}", where, what, known));
}

namespace {

std::string TypeOf(const json& node, const std::string& where) {
  return As<std::string>(Need(node, "type", where), where + ".type");
}
// {"Regex": …} or {"String": …}
std::string PatternOf(const json& node, const std::string& where) {
  const json& pattern = Need(node, "pattern", where);
  if (pattern.is_string()) return LiteralPattern(pattern.get<std::string>());
  if (pattern.is_object() && pattern.contains("String")) {
    return LiteralPattern(As<std::string>(pattern["String"], where + ".pattern"));
  }
  return As<std::string>(Need(pattern, "Regex", where + ".pattern"), where + ".pattern");
}

SplitBehavior BehaviorOf(const json& node, SplitBehavior otherwise, const std::string& where) {
  const auto& names = SplitBehaviorNames();
  std::string name =
      Get<std::string>(node, "behavior", names[static_cast<size_t>(otherwise)], where);
  auto at = std::find(names.begin(), names.end(), name);
  if (at == names.end()) UnsupportedJson(where + ".behavior", name, Join(names, ", "));
  return static_cast<SplitBehavior>(at - names.begin());
}

constexpr const char* kWord = "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}]+";
constexpr const char* kNoWord = "[^\\s\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}]+";

PrependScheme SchemeOf(const json& node, const std::string& where) {
  std::string otherwise = Get(node, "add_prefix_space", true, where) ? "always" : "never";
  std::string scheme = Get<std::string>(node, "prepend_scheme", otherwise, where);
  if (scheme == "always") return PrependScheme::kAlways;
  if (scheme == "first") return PrependScheme::kFirst;
  if (scheme != "never") UnsupportedJson(where + ".prepend_scheme", scheme, "always, first, never");
  return PrependScheme::kNever;
}

}  // namespace

std::unique_ptr<Normalizer> ReadNormalizer(const json& node, const std::string& where) {
  std::string type = TypeOf(node, where);
  if (type == "NFC") return MakeUnicodeNormalizer(UnicodeForm::kNfc);
  if (type == "NFD") return MakeUnicodeNormalizer(UnicodeForm::kNfd);
  if (type == "NFKC") return MakeUnicodeNormalizer(UnicodeForm::kNfkc);
  if (type == "NFKD") return MakeUnicodeNormalizer(UnicodeForm::kNfkd);
  if (type == "Lowercase") return MakeLowercase();
  if (type == "StripAccents") return MakeStripAccents();
  if (type == "Strip") {
    return MakeStrip(Get(node, "strip_left", true, where), Get(node, "strip_right", true, where));
  }
  if (type == "Prepend") return MakePrepend(Get<std::string>(node, "prepend", "▁", where));
  if (type == "Replace") {
    return MakeReplace(PatternOf(node, where), Get<std::string>(node, "content", "", where), where);
  }
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (const json& step : JsonList(node, "normalizers", where)) {
      steps.push_back(ReadNormalizer(step, fmt::format("{}[{}]", where, steps.size())));
    }
    return steps.empty() ? nullptr : MakeNormalizerSequence(std::move(steps));
  }
  UnsupportedJson(
      where, type,
      "NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace, Sequence");
}

bool HasByteLevel(const json& node) {
  if (!node.is_object()) return false;
  if (node.value("type", json()) == "ByteLevel") return true;
  if (!node.contains("pretokenizers") || !node["pretokenizers"].is_array()) return false;
  const json& steps = node["pretokenizers"];
  return std::any_of(steps.begin(), steps.end(), HasByteLevel);
}

std::unique_ptr<PreTokenizer> ReadPreTokenizer(const json& node, const std::string& where) {
  std::string type = TypeOf(node, where);
  if (type == "ByteLevel") {
    return MakeByteLevel(Get(node, "add_prefix_space", true, where),
                         Get(node, "use_regex", true, where));
  }
  if (type == "Split") {
    return MakeRegexSplit(PatternOf(node, where), BehaviorOf(node, SplitBehavior::kIsolated, where),
                          Get(node, "invert", false, where), where);
  }
  if (type == "Digits") {
    auto behavior = Get(node, "individual_digits", false, where) ? SplitBehavior::kIsolated
                                                                 : SplitBehavior::kContiguous;
    return MakeRegexSplit("\\p{N}", behavior, false, where);
  }
  if (type == "Punctuation") {
    return MakeRegexSplit("[\\p{P}!-/:-@\\[-`{-~]",
                          BehaviorOf(node, SplitBehavior::kIsolated, where), false, where);
  }
  if (type == "Whitespace") {
    return MakeRegexSplit(fmt::format("{}|{}", kWord, kNoWord), SplitBehavior::kRemoved, true,
                          where);
  }
  if (type == "WhitespaceSplit") {
    return MakeRegexSplit("\\s", SplitBehavior::kRemoved, false, where);
  }
  if (type == "CharDelimiterSplit") {
    std::string delimiter = As<std::string>(Need(node, "delimiter", where), where + ".delimiter");
    return MakeRegexSplit(LiteralPattern(delimiter), SplitBehavior::kRemoved, false, where);
  }
  if (type == "Metaspace") {
    return MakeMetaspace(Get<std::string>(node, "replacement", "▁", where), SchemeOf(node, where),
                         Get(node, "split", true, where));
  }
  if (type == "Sequence") {
    std::vector<std::unique_ptr<PreTokenizer>> steps;
    int byte_level_at = -1;
    for (const json& step : JsonList(node, "pretokenizers", where)) {
      if (byte_level_at < 0 && HasByteLevel(step)) byte_level_at = static_cast<int>(steps.size());
      steps.push_back(ReadPreTokenizer(step, fmt::format("{}[{}]", where, steps.size())));
    }
    return MakeSequence(std::move(steps), byte_level_at);
  }
  UnsupportedJson(where, type,
                  "ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, "
                  "CharDelimiterSplit, Metaspace, Sequence");
}

}  // namespace hone::data
