#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "data/bpe/bpe_tokenizer.h"
#include "data/bpe/json_access.h"

namespace hone::data {
namespace {

using nlohmann::json;

std::string TokenizerClass(const std::string& folder) {
  std::string path = (std::filesystem::path(folder) / "tokenizer_config.json").string();
  if (!runtime::LocalFileSystem().Exists(path)) return "";
  return Get<std::string>(ParseJson(runtime::LocalFileSystem().ReadAll(path), path),
                          "tokenizer_class", "", path);
}

// The lines of a text, without line ends (LF or CRLF).
std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
  }
  return lines;
}

void ReadMergesText(const std::string& text, const std::string& path, BpeModel* model) {
  auto lines = Lines(text);
  model->merges.Reserve(lines.size());
  int32_t rank = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].empty() || (i == 0 && lines[i].starts_with("#version"))) continue;
    size_t space = lines[i].find(' ');
    std::string left, right;
    bool known = space != std::string_view::npos &&
                 FromByteAlphabet(lines[i].substr(0, space), &left) &&
                 FromByteAlphabet(lines[i].substr(space + 1), &right);
    Check<DataError>(known, "{}:{}: '{}'; 'left right' was expected", path, i + 1, lines[i]);
    auto a = model->id_of.find(left), b = model->id_of.find(right),
         merged = model->id_of.find(left + right);
    Check<DataError>(
        a != model->id_of.end() && b != model->id_of.end() && merged != model->id_of.end(),
        "{}:{}: '{}' joins tokens of which the vocabulary lacks one", path, i + 1, lines[i]);
    model->merges.Insert(a->second, b->second, {rank++, merged->second});
  }
}

}  // namespace

BpeParts ReadVocabAndMerges(const std::string& vocab_path, const std::string& merges_path) {
  BpeParts parts;
  std::string vocab_text = runtime::LocalFileSystem().ReadAll(vocab_path);
  std::string merges_text = runtime::LocalFileSystem().ReadAll(merges_path);
  json vocab = ParseJson(vocab_text, vocab_path);
  Check<DataError>(vocab.is_object() && !vocab.empty(), "{}: no map of tokens to ids", vocab_path);
  for (const auto& [token, id] : vocab.items()) {
    Check<DataError>(id.is_number_integer() && IsId(id.get<int64_t>()),
                     "{}: token '{}' has the id {}", vocab_path, token, id.dump());
    size_t at = id.get<size_t>();
    if (at >= parts.token_bytes.size()) parts.token_bytes.resize(at + 1);
    std::string bytes;
    if (!FromByteAlphabet(token, &bytes)) {
      parts.token_bytes[at] = token;
      continue;
    }
    parts.token_bytes[at] = bytes;
    parts.model.id_of[bytes] = static_cast<int32_t>(at);
    if (bytes.size() == 1)
      parts.model.byte_id[static_cast<uint8_t>(bytes[0])] = static_cast<int32_t>(at);
    if (token == "<|endoftext|>") {
      AddedToken end;
      end.id = static_cast<int32_t>(at);
      end.content = token;
      end.special = true;
      parts.added.push_back(end);
    }
  }
  ReadMergesText(merges_text, merges_path, &parts.model);
  std::string folder = std::filesystem::path(vocab_path).parent_path().string();
  bool qwen = TokenizerClass(folder).starts_with("Qwen2");
  if (qwen) parts.normalizer = MakeUnicodeNormalizer(UnicodeForm::kNfc);
  parts.pre_tokenizer = MakeRegexSplit(qwen ? kQwen2Pattern : kGpt2Pattern,
                                       SplitBehavior::kIsolated, false, vocab_path);
  parts.description = vocab_text + merges_text + (qwen ? "qwen2" : "gpt2");
  return parts;
}

}  // namespace hone::data
