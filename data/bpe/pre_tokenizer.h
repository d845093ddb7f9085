// From text to the pieces that are merged each by itself, as the "pre_tokenizer" of a
// tokenizer.json says.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hone::data {

// Views into the text given, or into `owned` where a step wrote new text.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> owned;
};

// Const and thread safe. `text` is valid UTF-8; `at_start` tells whether it is the beginning of the
// whole input. Appends non-empty pieces.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void Split(std::string_view text, bool at_start, Pieces* out) const = 0;
};

// What happens to the matches of a pattern; the names are tokenizer.json's.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
const std::vector<std::string>& SplitBehaviorNames();

std::unique_ptr<PreTokenizer> MakeWhole();  // one piece
std::unique_ptr<PreTokenizer> MakeRegexSplit(const std::string& pattern, SplitBehavior behavior,
                                             bool invert, const std::string& where);
// Bytes as they are: the letters that tokenizer.json spells them with (see ByteAlphabet) appear
// only to the steps of a sequence that follow this one.
std::unique_ptr<PreTokenizer> MakeByteLevel(bool add_prefix_space, bool use_regex);
// Spaces become `replacement`, which begins each piece.
enum class PrependScheme { kNever, kFirst, kAlways };
std::unique_ptr<PreTokenizer> MakeMetaspace(const std::string& replacement, PrependScheme scheme,
                                            bool split);
// `byte_level_at`: which step is the byte level, or −1.
std::unique_ptr<PreTokenizer> MakeSequence(std::vector<std::unique_ptr<PreTokenizer>> steps,
                                           int byte_level_at);

// GPT-2's letters for bytes: each byte is spelled as one printable character.
std::string ByteAlphabet(uint8_t byte);
// False, leaving *bytes alone, when a character of `text` is none of these letters.
bool FromByteAlphabet(std::string_view text, std::string* bytes);

extern const char* const kGpt2Pattern;
extern const char* const kQwen2Pattern;
extern const char* const kLlama3Pattern;

}  // namespace hone::data
