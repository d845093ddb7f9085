// UTF-8, one character at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace hone::data {

// What stands at the front of a byte string.
struct Utf8Step {
  enum class Kind : uint8_t {
    kCharacter,  // `length` bytes make the character `code`
    kInvalid,  // `length` bytes can never become one: the maximal ill-formed prefix of Unicode 3.9
    kIncomplete,  // all the bytes given begin a character that more bytes could end
  };
  Kind kind;
  size_t length;
  uint32_t code;
};
// `text` must not be empty. Surrogates, overlong forms and codes above U+10FFFF are invalid.
Utf8Step NextUtf8(std::string_view text);
void AppendUtf8(uint32_t code, std::string* out);
bool IsValidUtf8(std::string_view text);
// Ill-formed parts become U+FFFD each.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace hone::data
