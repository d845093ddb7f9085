#include "data/utf8.h"

namespace hone::data {
namespace {

using Kind = Utf8Step::Kind;

// Table 3-7 of the Unicode standard: the length of a well-formed sequence by its first byte, and
// the range of its second byte. Later bytes are 80…BF.
struct Lead {
  size_t length;
  uint8_t low, high;
};
Lead ReadLead(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step NextUtf8(std::string_view text) {
  uint8_t first = static_cast<uint8_t>(text[0]);
  Lead lead = ReadLead(first);
  if (lead.length == 0) return {Kind::kInvalid, 1, 0};
  if (lead.length == 1) return {Kind::kCharacter, 1, first};
  uint32_t code = first & (0xFFu >> (lead.length + 1));
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {Kind::kIncomplete, i, 0};
    uint8_t byte = static_cast<uint8_t>(text[i]);
    uint8_t low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return {Kind::kInvalid, i, 0};
    code = code << 6 | (byte & 0x3Fu);
  }
  return {Kind::kCharacter, lead.length, code};
}

void AppendUtf8(uint32_t code, std::string* out) {
  auto push = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    push(code);
  } else if (code < 0x800) {
    push(0xC0 | code >> 6);
    push(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    push(0xE0 | code >> 12);
    push(0x80 | (code >> 6 & 0x3F));
    push(0x80 | (code & 0x3F));
  } else {
    push(0xF0 | code >> 18);
    push(0x80 | (code >> 12 & 0x3F));
    push(0x80 | (code >> 6 & 0x3F));
    push(0x80 | (code & 0x3F));
  }
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    Utf8Step step = NextUtf8(text);
    if (step.kind != Kind::kCharacter) return false;
    text.remove_prefix(step.length);
  }
  return true;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    Utf8Step step = NextUtf8(text);
    if (step.kind == Kind::kCharacter) {
      out.append(text.substr(0, step.length));
    } else {
      AppendUtf8(0xFFFD, &out);
    }
    text.remove_prefix(step.length);
  }
  return out;
}

}  // namespace hone::data
