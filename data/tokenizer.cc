#include "data/tokenizer.h"

#include <fmt/format.h>

#include <filesystem>

#include "data/bpe/bpe_tokenizer.h"
#include "data/utf8.h"
#include "runtime/error.h"

namespace hone::data {

namespace {

namespace fs = std::filesystem;

BpeParts ReadFolder(const fs::path& folder) {
  auto has = [&](const char* name) { return fs::exists(folder / name); };
  auto path = [&](const char* name) { return (folder / name).string(); };
  if (has("tokenizer.json")) return ReadTokenizerJson(path("tokenizer.json"));
  if (has("vocab.json") && has("merges.txt")) {
    return ReadVocabAndMerges(path("vocab.json"), path("merges.txt"));
  }
  if (has("encoder.json") && has("vocab.bpe")) {
    return ReadVocabAndMerges(path("encoder.json"), path("vocab.bpe"));
  }
  if (has("tokenizer.model")) return ReadTokenizerModel(path("tokenizer.model"));
  for (const char* name : {"tokenizer.bin", "tok512.bin"}) {
    if (has(name)) return ReadLlama2cBin(path(name));
  }
  throw ConfigError(
      fmt::format("[tokenizer] the folder '{}' has no tokenizer.json, vocab.json + merges.txt, "
                  "tokenizer.model or "
                  "tokenizer.bin",
                  folder.string()));
}

BpeParts ReadFile(const fs::path& file) {
  std::string name = file.filename().string(), path = file.string();
  if (name == "vocab.json")
    return ReadVocabAndMerges(path, (file.parent_path() / "merges.txt").string());
  if (name.ends_with(".json")) return ReadTokenizerJson(path);
  if (name.ends_with(".model") || name.ends_with(".tiktoken")) return ReadTokenizerModel(path);
  if (name.ends_with(".bin")) return ReadLlama2cBin(path);
  throw ConfigError(
      fmt::format("[tokenizer] '{}' is no tokenizer file; known are tokenizer.json, vocab.json, "
                  "*.model and *.bin",
                  path));
}

}  // namespace

std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& spec,
                                         const std::vector<std::string>& extra_special) {
  if (spec == "byte") return MakeByteTokenizer(extra_special);
  fs::path path(spec);
  Check<ConfigError>(fs::exists(path),
                     "[tokenizer] '{}' is neither 'byte' nor a file or folder that exists", spec);
  bool folder = fs::is_directory(path);
  BpeParts parts = folder ? ReadFolder(path) : ReadFile(path);
  ReadTokenizerConfig((folder ? path : path.parent_path()).string(), &parts);
  return MakeBpeTokenizer(std::move(parts), extra_special);
}

IncrementalDecoder::IncrementalDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special) {}

std::string IncrementalDecoder::Push(int32_t id) {
  pending_ += tokenizer_.Decode({id}, skip_special_);
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    if (step.kind == Utf8Step::Kind::kCharacter) {
      out.append(rest.substr(0, step.length));
    } else {
      AppendUtf8(0xFFFD, &out);
    }
    rest.remove_prefix(step.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return out;
}

std::string IncrementalDecoder::Flush() {
  std::string out = ReplaceInvalidUtf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace hone::data
