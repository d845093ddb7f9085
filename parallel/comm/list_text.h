// Numbers in messages.
#pragma once

#include <string>
#include <vector>

namespace hone::parallel {

// "1, 2, 4"
template <class T>
std::string ListText(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) text += (text.empty() ? "" : ", ") + std::to_string(value);
  return text;
}

}  // namespace hone::parallel
