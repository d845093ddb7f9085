// What is done to text before it is cut into pieces: the "normalizer" of a tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hone::data {

// Const and thread safe; takes and gives valid UTF-8.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual std::string Apply(std::string_view text) const = 0;
};

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };
std::unique_ptr<Normalizer> MakeUnicodeNormalizer(UnicodeForm form);
std::unique_ptr<Normalizer> MakeLowercase();
std::unique_ptr<Normalizer> MakeStripAccents();  // removes marks of all kinds
std::unique_ptr<Normalizer> MakeStrip(bool left, bool right);
std::unique_ptr<Normalizer> MakePrepend(const std::string& prefix);  // to text that is not empty
std::unique_ptr<Normalizer> MakeReplace(const std::string& pattern, const std::string& content,
                                        const std::string& where);
std::unique_ptr<Normalizer> MakeNormalizerSequence(std::vector<std::unique_ptr<Normalizer>> steps);

// Whether the character is Unicode white space, and whether it counts as part of a word.
bool IsSpace(uint32_t code);
bool IsWordCharacter(uint32_t code);

}  // namespace hone::data
