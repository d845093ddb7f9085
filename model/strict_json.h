// JSON from files that are not to be trusted. Only for .cc files: brings in nlohmann/json.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace hone::model {

// A discarded value when it is no JSON; CheckpointError, beginning with `path`, on a key given
// twice in one object, of which a parser would drop one, and on nesting that no header has.
nlohmann::json ParseStrictly(const char* begin, const char* end, const std::string& path);

}  // namespace hone::model
