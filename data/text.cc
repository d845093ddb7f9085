#include "data/text.h"

namespace hone::data {

std::string Join(const std::vector<std::string>& words, std::string_view between) {
  std::string joined;
  for (const std::string& word : words) {
    if (&word != &words.front()) joined += between;
    joined += word;
  }
  return joined;
}

std::string_view Trim(std::string_view text) {
  size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t upto = 0;
  for (size_t at; (at = text.find(from, upto)) != std::string_view::npos; upto = at + from.size()) {
    out.append(text.substr(upto, at - upto)).append(to);
  }
  return out.append(text.substr(upto));
}

}  // namespace hone::data
