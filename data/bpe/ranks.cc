// "base64-token rank" lines: the vocabularies of Llama 3 (tokenizer.model) and Qwen
// (qwen.tiktoken).
#include <fmt/format.h>

#include <algorithm>

#include "data/bpe/bpe_tokenizer.h"
#include "data/text.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

int32_t Base64Value(char c) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  size_t at = kDigits.find(c);
  return at == std::string_view::npos ? -1 : static_cast<int32_t>(at);
}
// False on anything that is no base64.
bool DecodeBase64(std::string_view text, std::string* out) {
  out->clear();
  while (text.ends_with('=')) text.remove_suffix(1);
  uint32_t bits = 0;
  int count = 0;
  for (char c : text) {
    int32_t value = Base64Value(c);
    if (value < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out->push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  return !out->empty();
}

// The 256 special tokens that follow Llama 3's ranks.
std::vector<std::string> Llama3Specials() {
  std::vector<std::string> names = {"<|begin_of_text|>", "<|end_of_text|>"};
  int reserved = 0;
  auto reserve = [&](int count) {
    for (; count > 0; --count)
      names.push_back(fmt::format("<|reserved_special_token_{}|>", reserved++));
  };
  reserve(4);
  names.emplace_back("<|start_header_id|>");
  names.emplace_back("<|end_header_id|>");
  reserve(1);
  names.emplace_back("<|eot_id|>");
  reserve(256 - static_cast<int>(names.size()));
  return names;
}

std::vector<std::string> QwenSpecials() {
  std::vector<std::string> names = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int i = 0; i < 205; ++i) names.push_back(fmt::format("<|extra_{}|>", i));
  return names;
}

}  // namespace

bool LooksLikeRanks(const std::string& bytes) {
  size_t space = bytes.find(' ');
  std::string token;
  return space != std::string::npos && space < 64 &&
         DecodeBase64(std::string_view(bytes).substr(0, space), &token);
}

BpeParts ReadRanks(const std::string& text, const std::string& path) {
  BpeParts parts;
  size_t line = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view row = Trim(std::string_view(text).substr(begin, end - begin));
    begin = end + 1;
    ++line;
    if (row.empty()) continue;
    size_t space = row.find(' ');
    std::string bytes;
    Check<DataError>(space != std::string_view::npos &&
                         DecodeBase64(row.substr(0, space), &bytes) &&
                         row.substr(space + 1) == std::to_string(parts.token_bytes.size()),
                     "{}:{}: '{}'; a base64 token and the rank {} were expected", path, line, row,
                     parts.token_bytes.size());
    int32_t id = static_cast<int32_t>(parts.token_bytes.size());
    if (bytes.size() == 1) parts.model.byte_id[static_cast<uint8_t>(bytes[0])] = id;
    parts.model.id_of.emplace(bytes, id);
    parts.token_bytes.push_back(std::move(bytes));
  }
  std::vector<int32_t> ranks(parts.token_bytes.size());
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = static_cast<int32_t>(i);
  AddMergesFromRanks(parts.token_bytes, ranks, &parts.model);
  bool qwen = path.ends_with(".tiktoken");
  for (const std::string& name : qwen ? QwenSpecials() : Llama3Specials()) {
    AddedToken token;
    token.id = static_cast<int32_t>(parts.token_bytes.size() + parts.added.size());
    token.content = name;
    token.special = true;
    parts.added.push_back(std::move(token));
  }
  parts.model.ignore_merges = true;
  if (qwen) parts.normalizer = MakeUnicodeNormalizer(UnicodeForm::kNfc);
  parts.pre_tokenizer =
      MakeRegexSplit(qwen ? kQwen2Pattern : kLlama3Pattern, SplitBehavior::kIsolated, false, path);
  parts.bos = qwen ? "" : "<|begin_of_text|>";
  parts.eos = qwen ? "<|endoftext|>" : "<|end_of_text|>";
  parts.description = (qwen ? "qwen" : "llama3") + text;
  return parts;
}

}  // namespace hone::data
