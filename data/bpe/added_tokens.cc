#include "data/bpe/added_tokens.h"

#include <algorithm>

#include "data/bpe/normalizer.h"
#include "data/utf8.h"

namespace hone::data {
namespace {

bool IsWordAt(std::string_view text, size_t at) {
  return at < text.size() && IsWordCharacter(NextUtf8(text.substr(at)).code);
}
size_t CharacterBefore(std::string_view text, size_t at) {
  do {
    --at;
  } while (at > 0 && (text[at] & 0xC0) == 0x80);
  return at;
}

}  // namespace

void AddedTokenFinder::Add(const AddedToken& token) {
  if (token.content.empty()) return;
  int32_t node = 0;
  for (char byte : token.content) {
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_[static_cast<size_t>(node)].next.emplace_back(byte, child);
      nodes_.emplace_back();
    }
    node = child;
  }
  begins_[static_cast<uint8_t>(token.content[0])] = true;
  nodes_[static_cast<size_t>(node)].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

int32_t AddedTokenFinder::Child(int32_t node, char byte) const {
  for (auto [edge, child] : nodes_[static_cast<size_t>(node)].next) {
    if (edge == byte) return child;
  }
  return -1;
}

int32_t AddedTokenFinder::LongestAt(std::string_view text, size_t at) const {
  int32_t node = 0, best = -1;
  for (; at < text.size(); ++at) {
    node = Child(node, text[at]);
    if (node < 0) break;
    if (nodes_[static_cast<size_t>(node)].token >= 0)
      best = nodes_[static_cast<size_t>(node)].token;
  }
  return best;
}

void AddedTokenFinder::Cut(std::string_view text, bool parse_special,
                           const std::function<void(std::string_view)>& on_text,
                           const std::function<void(const AddedToken&)>& on_token) const {
  size_t upto = 0;
  for (size_t at = 0; at < text.size();) {
    int32_t found = begins_[static_cast<uint8_t>(text[at])] ? LongestAt(text, at) : -1;
    if (found < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(found)];
    size_t begin = at, end = at + token.content.size();
    at = end;
    if (token.special && !parse_special) continue;
    if (token.single_word &&
        (IsWordAt(text, end) || (begin > 0 && IsWordAt(text, CharacterBefore(text, begin))))) {
      continue;
    }
    while (token.lstrip && begin > upto) {
      size_t before = CharacterBefore(text, begin);
      if (before < upto || !IsSpace(NextUtf8(text.substr(before)).code)) break;
      begin = before;
    }
    while (token.rstrip && end < text.size()) {
      Utf8Step step = NextUtf8(text.substr(end));
      if (!IsSpace(step.code)) break;
      end += step.length;
    }
    if (begin > upto) on_text(text.substr(upto, begin - upto));
    on_token(token);
    upto = at = end;
  }
  if (upto < text.size()) on_text(text.substr(upto));
}

}  // namespace hone::data
