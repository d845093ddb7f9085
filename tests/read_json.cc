#include "tests/read_json.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace hone {

nlohmann::json ParseJson(const std::string& text, bool strict) {
  return nlohmann::json::parse(text, nullptr, strict);
}

nlohmann::json ReadJson(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return ParseJson(text.str());
}

}  // namespace hone
