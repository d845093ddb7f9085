#include "data/bpe/bpe_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>

#include "data/utf8.h"
#include "runtime/error.h"
#include "runtime/philox.h"

namespace hone::data {
namespace {

// Words and their ids. A full shard forgets everything.
class WordCache {
 public:
  template <class Encode>
  void Append(std::string_view word, std::vector<int32_t>* ids, Encode&& encode) {
    if (word.size() > kLongest) return encode(word, ids);
    Shard& shard = shards_[std::hash<std::string_view>{}(word) % kShards];
    std::lock_guard lock(shard.mutex);
    auto at = shard.words.find(word);
    if (at == shard.words.end()) {
      if (shard.words.size() >= kWords) shard.words.clear();
      std::vector<int32_t> fresh;
      encode(word, &fresh);
      at = shard.words.emplace(std::string(word), std::move(fresh)).first;
    }
    ids->insert(ids->end(), at->second.begin(), at->second.end());
  }

 private:
  static constexpr size_t kShards = 16, kWords = 8192, kLongest = 96;
  struct Shard {
    std::mutex mutex;
    StringMap<std::vector<int32_t>> words;
  };
  Shard shards_[kShards];
};

// The first of the usual names that the tokenizer has.
std::string Usual(const std::vector<AddedToken>& added, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    for (const AddedToken& token : added) {
      if (token.content == name) return name;
    }
  }
  return "";
}

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(BpeParts parts, const std::vector<std::string>& extra_special)
      : parts_(std::move(parts)) {
    for (const std::string& name : extra_special) AddExtra(name);
    size_t size = parts_.token_bytes.size();
    for (const AddedToken& token : parts_.added) {
      size = std::max(size, static_cast<size_t>(token.id) + 1);
    }
    parts_.token_bytes.resize(size);
    special_.resize(size, false);
    for (const AddedToken& token : parts_.added) AddToFinder(token);
    if (parts_.eos.empty()) {
      parts_.eos = Usual(parts_.added, {"<|end_of_text|>", "<|endoftext|>", "</s>", "<|im_end|>",
                                        "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|eos|>"});
    }
    if (parts_.bos.empty()) {
      parts_.bos =
          Usual(parts_.added, {"<|begin_of_text|>", "<s>", "<｜begin▁of▁sentence｜>", "<|bos|>"});
    }
  }

  int32_t vocab_size() const override { return static_cast<int32_t>(parts_.token_bytes.size()); }

  std::vector<int32_t> Encode(std::string_view text, bool parse_special) const override {
    std::vector<int32_t> ids;
    const char* begin = text.data();
    while (!text.empty()) {
      size_t valid = ValidPrefix(text);
      EncodeValid(text.substr(0, valid), parse_special, text.data() == begin, &ids);
      text.remove_prefix(valid);
      if (text.empty()) break;
      size_t bad = NextUtf8(text).length;
      for (char byte : text.substr(0, bad)) PushByte(static_cast<uint8_t>(byte), &ids);
      text.remove_prefix(bad);
    }
    return ids;
  }

  std::string Decode(const std::vector<int32_t>& ids, bool skip_special) const override {
    std::string text;
    for (int32_t id : ids) {
      CheckId(id);
      if (skip_special && special_[static_cast<size_t>(id)]) continue;
      text += parts_.token_bytes[static_cast<size_t>(id)];
    }
    return text;
  }
  std::string TokenBytes(int32_t id) const override {
    CheckId(id);
    return parts_.token_bytes[static_cast<size_t>(id)];
  }
  int32_t SpecialId(std::string_view name) const override {
    for (const AddedToken& token : parts_.added) {
      if (token.content == name) return token.id;
    }
    return -1;
  }
  int32_t eos_id() const override { return IdOf(parts_.eos); }
  int32_t bos_id() const override { return IdOf(parts_.bos); }
  std::string Digest() const override {
    std::string names = parts_.bos + '\n' + parts_.eos + '\n';
    for (const AddedToken& token : parts_.added)
      names += fmt::format("{} {}\n", token.id, token.content);
    return fmt::format("bpe-{}-{:016x}{:016x}", vocab_size(), HashName(parts_.description),
                       HashName(names));
  }

 private:
  void CheckId(int32_t id) const {
    Check<DataError>(id >= 0 && id < vocab_size(), "[tokenizer] no token has id {}; ids end at {}",
                     id, vocab_size() - 1);
  }
  int32_t IdOf(const std::string& name) const {
    if (name.empty()) return -1;
    int32_t id = SpecialId(name);
    if (id >= 0) return id;
    auto at = parts_.model.id_of.find(name);
    return at == parts_.model.id_of.end() ? -1 : at->second;
  }
  void AddExtra(const std::string& name) {
    if (SpecialId(name) >= 0) return;
    AddedToken token;
    token.id = static_cast<int32_t>(parts_.token_bytes.size());
    for (const AddedToken& other : parts_.added) token.id = std::max(token.id, other.id + 1);
    token.content = name;
    token.special = true;
    parts_.added.push_back(std::move(token));
  }
  void AddToFinder(const AddedToken& token) {
    parts_.token_bytes[static_cast<size_t>(token.id)] = token.content;
    special_[static_cast<size_t>(token.id)] = token.special;
    if (!token.normalized || parts_.normalizer == nullptr) {
      (token.normalized ? normalized_ : as_given_).Add(token);
      return;
    }
    AddedToken spelled = token;
    spelled.content = parts_.normalizer->Apply(token.content);
    normalized_.Add(spelled);
  }

  static size_t ValidPrefix(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
      if ((text[at] & 0x80) == 0) {
        ++at;
        continue;
      }
      Utf8Step step = NextUtf8(text.substr(at));
      if (step.kind != Utf8Step::Kind::kCharacter) break;
      at += step.length;
    }
    return at;
  }
  void PushByte(uint8_t byte, std::vector<int32_t>* ids) const {
    int32_t id =
        parts_.model.byte_id[byte] >= 0 ? parts_.model.byte_id[byte] : parts_.model.unknown;
    if (id >= 0) ids->push_back(id);
  }

  void EncodeValid(std::string_view text, bool parse_special, bool at_start,
                   std::vector<int32_t>* ids) const {
    auto push = [ids](const AddedToken& token) { ids->push_back(token.id); };
    as_given_.Cut(
        text, parse_special,
        [&](std::string_view section) {
          bool first = at_start && section.data() == text.data();
          std::string changed;
          if (parts_.normalizer) {
            changed = parts_.normalizer->Apply(section);
            section = changed;
          }
          normalized_.Cut(
              section, parse_special,
              [&](std::string_view part) {
                EncodeText(part, first && part.data() == section.data(), ids);
              },
              push);
        },
        push);
  }
  void EncodeText(std::string_view text, bool at_start, std::vector<int32_t>* ids) const {
    Pieces pieces;
    parts_.pre_tokenizer->Split(text, at_start, &pieces);
    for (std::string_view piece : pieces.views) {
      cache_.Append(piece, ids, [this](std::string_view word, std::vector<int32_t>* out) {
        parts_.model.Encode(word, out);
      });
    }
  }

  BpeParts parts_;
  std::vector<bool> special_;
  AddedTokenFinder as_given_, normalized_;
  mutable WordCache cache_;
};

}  // namespace

std::unique_ptr<Tokenizer> MakeBpeTokenizer(BpeParts parts,
                                            const std::vector<std::string>& extra_special) {
  return std::make_unique<BpeTokenizer>(std::move(parts), extra_special);
}

}  // namespace hone::data
