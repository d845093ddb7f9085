// Reading JSON whose shape is not to be trusted. Only for .cc files: brings in nlohmann/json.
#pragma once

#include <fmt/format.h>

#include <string>

#include "runtime/error.h"
#include "runtime/file_system.h"
#include "runtime/json.h"

namespace hone::data {

using runtime::ParseJson;

// The value as a T; `where` names it.
template <class T>
T As(const nlohmann::json& value, const std::string& where) {
  try {
    return value.get<T>();
  } catch (const nlohmann::json::exception&) {
    throw DataError(fmt::format("{}: a JSON {} has the wrong type", where, value.type_name()));
  }
}

// DataError when `map` is no object or lacks `key`.
inline const nlohmann::json& Need(const nlohmann::json& map, const char* key,
                                  const std::string& where) {
  Check<DataError>(map.is_object(), "{}: a JSON {} where an object was expected", where,
                   map.type_name());
  auto at = map.find(key);
  Check<DataError>(at != map.end(), "{}: '{}' is missing", where, key);
  return *at;
}

// A missing or null member reads as `otherwise`.
template <class T>
T Get(const nlohmann::json& map, const char* key, T otherwise, const std::string& where) {
  Check<DataError>(map.is_object(), "{}: a JSON {} where an object was expected", where,
                   map.type_name());
  auto at = map.find(key);
  if (at == map.end() || at->is_null()) return otherwise;
  return As<T>(*at, fmt::format("{}.{}", where, key));
}

}  // namespace hone::data
