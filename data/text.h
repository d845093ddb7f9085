// Small things done to strings.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hone::data {

std::string Join(const std::vector<std::string>& words, std::string_view between);
std::string_view Trim(std::string_view text);  // spaces, tabs and line ends, at both ends

}  // namespace hone::data
