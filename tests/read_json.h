// JSON in tests. One file parses for all of them: to compile a parser takes a second.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "tests/read_json.h"

namespace hone {

// Throws what nlohmann::json::parse throws, or gives a discarded value when not `strict`.
nlohmann::json ParseJson(const std::string& text, bool strict = true);
// Throws for a file that is not there too.
nlohmann::json ReadJson(const std::string& path);

}  // namespace hone
