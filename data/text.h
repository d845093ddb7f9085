// Small things done to strings.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hone::data {

std::string Join(const std::vector<std::string>& words, std::string_view between);
std::string_view Trim(std::string_view text);  // spaces, tabs and line ends, at both ends

// Every `from` becomes `to`; `from` is not empty.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

}  // namespace hone::data
