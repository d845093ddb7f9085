#include "data/bpe/pre_tokenizer.h"

#include <array>
#include <unordered_map>

#include "data/bpe/regex.h"
#include "data/utf8.h"
#include "runtime/error.h"

namespace hone::data {

const char* const kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char* const kQwen2Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char* const kLlama3Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

namespace {

struct Range {
  size_t begin, end;
  bool match;
};

// The whole text as ranges that match and ranges that do not, in order.
void Cover(const Regex& regex, std::string_view text, bool invert, std::vector<Range>* ranges) {
  thread_local std::vector<std::pair<size_t, size_t>> matches;
  regex.FindAll(text, &matches);
  ranges->clear();
  size_t upto = 0;
  for (auto [begin, end] : matches) {
    if (upto < begin) ranges->push_back({upto, begin, invert});
    ranges->push_back({begin, end, !invert});
    upto = end;
  }
  if (upto < text.size()) ranges->push_back({upto, text.size(), invert});
}

// Joins neighbours where the behaviour says so; `ranges` keeps its order.
void Merge(SplitBehavior behavior, std::vector<Range>* ranges) {
  std::vector<Range> joined;
  for (size_t i = 0; i < ranges->size(); ++i) {
    const Range& range = (*ranges)[i];
    bool join = false;
    if (i > 0) {
      const Range& before = (*ranges)[i - 1];
      join = behavior == SplitBehavior::kContiguous           ? range.match == before.match
             : behavior == SplitBehavior::kMergedWithPrevious ? range.match && !before.match
                                                              : before.match && !range.match;
    }
    if (join) {
      joined.back().end = range.end;
    } else {
      joined.push_back(range);
    }
  }
  ranges->swap(joined);
}

class Whole : public PreTokenizer {
 public:
  void Split(std::string_view text, bool, Pieces* out) const override {
    if (!text.empty()) out->views.push_back(text);
  }
};

class RegexSplit : public PreTokenizer {
 public:
  RegexSplit(const std::string& pattern, SplitBehavior behavior, bool invert,
             const std::string& where)
      : regex_(pattern, where), behavior_(behavior), invert_(invert) {}

  void Split(std::string_view text, bool, Pieces* out) const override {
    thread_local std::vector<Range> ranges;
    Cover(regex_, text, invert_, &ranges);
    bool removed = behavior_ == SplitBehavior::kRemoved;
    if (!removed && behavior_ != SplitBehavior::kIsolated) Merge(behavior_, &ranges);
    for (const Range& range : ranges) {
      if (removed && range.match) continue;
      out->views.push_back(text.substr(range.begin, range.end - range.begin));
    }
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex) : add_prefix_space_(add_prefix_space) {
    if (use_regex) {
      split_ = MakeRegexSplit(kGpt2Pattern, SplitBehavior::kIsolated, false, "[byte_level]");
    } else {
      split_ = MakeWhole();
    }
  }
  void Split(std::string_view text, bool at_start, Pieces* out) const override {
    if (add_prefix_space_ && !text.empty() && text[0] != ' ') {
      out->owned.push_back(' ' + std::string(text));
      text = out->owned.back();
    }
    split_->Split(text, at_start, out);
  }

 private:
  bool add_prefix_space_;
  std::unique_ptr<PreTokenizer> split_;
};

class Metaspace : public PreTokenizer {
 public:
  Metaspace(const std::string& replacement, PrependScheme scheme, bool split)
      : replacement_(replacement), scheme_(scheme) {
    split_ = split ? MakeRegexSplit(LiteralPattern(replacement), SplitBehavior::kMergedWithNext,
                                    false, "[metaspace]")
                   : MakeWhole();
  }
  void Split(std::string_view text, bool at_start, Pieces* out) const override {
    if (text.empty()) return;
    std::string spelled;
    for (char c : text) {
      if (c == ' ') {
        spelled += replacement_;
      } else {
        spelled += c;
      }
    }
    bool prepend =
        scheme_ == PrependScheme::kAlways || (scheme_ == PrependScheme::kFirst && at_start);
    if (prepend && !spelled.starts_with(replacement_)) spelled = replacement_ + spelled;
    out->owned.push_back(std::move(spelled));
    split_->Split(out->owned.back(), at_start, out);
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  std::unique_ptr<PreTokenizer> split_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}
  void Split(std::string_view text, bool at_start, Pieces* out) const override {
    std::vector<std::string_view> now = {text};
    for (size_t s = 0; s < steps_.size(); ++s) {
      Pieces next;
      next.owned.swap(out->owned);
      for (std::string_view piece : now) {
        steps_[s]->Split(piece, at_start && piece.data() == now[0].data(), &next);
      }
      out->owned.swap(next.owned);
      now.swap(next.views);
    }
    if (text.empty()) return;
    out->views.insert(out->views.end(), now.begin(), now.end());
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

// Lets `rest` see the letters of the bytes, and cuts the bytes where it cuts the letters.
class SplitLetters : public PreTokenizer {
 public:
  explicit SplitLetters(std::unique_ptr<PreTokenizer> rest) : rest_(std::move(rest)) {}
  void Split(std::string_view bytes, bool at_start, Pieces* out) const override {
    std::string letters;
    for (char byte : bytes) letters += ByteAlphabet(static_cast<uint8_t>(byte));
    Pieces cut;
    rest_->Split(letters, at_start, &cut);
    size_t at = 0;
    for (std::string_view piece : cut.views) {
      std::string piece_bytes;
      bool known = FromByteAlphabet(piece, &piece_bytes);
      Check<DataError>(
          known && bytes.substr(at).starts_with(piece_bytes),
          "[pre_tokenizer] a step after ByteLevel changes the text; it may only cut it");
      out->views.push_back(bytes.substr(at, piece_bytes.size()));
      at += piece_bytes.size();
    }
  }

 private:
  std::unique_ptr<PreTokenizer> rest_;
};

std::array<std::string, 256> MakeAlphabet() {
  std::array<std::string, 256> letters;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    AppendUtf8(printable ? byte : next++, &letters[byte]);
  }
  return letters;
}
const std::array<std::string, 256>& Alphabet() {
  static const std::array<std::string, 256> kLetters = MakeAlphabet();
  return kLetters;
}

}  // namespace

const std::vector<std::string>& SplitBehaviorNames() {
  static const std::vector<std::string> kNames = {"Removed", "Isolated", "MergedWithPrevious",
                                                  "MergedWithNext", "Contiguous"};
  return kNames;
}

std::string ByteAlphabet(uint8_t byte) { return Alphabet()[byte]; }

bool FromByteAlphabet(std::string_view text, std::string* bytes) {
  static const auto kBytes = [] {
    std::unordered_map<uint32_t, char> of;
    for (uint32_t b = 0; b < 256; ++b) of[NextUtf8(Alphabet()[b]).code] = static_cast<char>(b);
    return of;
  }();
  std::string out;
  while (!text.empty()) {
    Utf8Step step = NextUtf8(text);
    auto at = kBytes.find(step.code);
    if (step.kind != Utf8Step::Kind::kCharacter || at == kBytes.end()) return false;
    out += at->second;
    text.remove_prefix(step.length);
  }
  *bytes = std::move(out);
  return true;
}

std::unique_ptr<PreTokenizer> MakeWhole() { return std::make_unique<Whole>(); }

std::unique_ptr<PreTokenizer> MakeRegexSplit(const std::string& pattern, SplitBehavior behavior,
                                             bool invert, const std::string& where) {
  return std::make_unique<RegexSplit>(pattern, behavior, invert, where);
}

std::unique_ptr<PreTokenizer> MakeByteLevel(bool add_prefix_space, bool use_regex) {
  return std::make_unique<ByteLevel>(add_prefix_space, use_regex);
}

std::unique_ptr<PreTokenizer> MakeMetaspace(const std::string& replacement, PrependScheme scheme,
                                            bool split) {
  return std::make_unique<Metaspace>(replacement, scheme, split);
}

std::unique_ptr<PreTokenizer> MakeSequence(std::vector<std::unique_ptr<PreTokenizer>> steps,
                                           int byte_level_at) {
  size_t after = static_cast<size_t>(byte_level_at + 1);
  if (byte_level_at >= 0 && after < steps.size()) {
    std::vector<std::unique_ptr<PreTokenizer>> rest;
    for (size_t s = after; s < steps.size(); ++s) rest.push_back(std::move(steps[s]));
    steps.resize(after);
    steps.push_back(std::make_unique<SplitLetters>(std::make_unique<Sequence>(std::move(rest))));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

}  // namespace hone::data
