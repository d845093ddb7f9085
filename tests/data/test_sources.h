// Sources for tests.
#pragma once

#include <memory>
#include <string>

#include "data/task.h"
#include "runtime/config.h"
#include "runtime/error.h"

namespace hone::data {

inline std::unique_ptr<ProblemSource> Problems(const std::string& yaml, uint64_t seed = 1) {
  ConfigReader reader(Config::FromString(yaml));
  auto source = MakeProblemSource(reader, seed);
  reader.Finish();
  return source;
}
inline std::unique_ptr<ExampleSource> Examples(const std::string& yaml, uint64_t seed = 1) {
  ConfigReader reader(Config::FromString(yaml));
  auto source = MakeExampleSource(reader, seed);
  reader.Finish();
  return source;
}

inline std::unique_ptr<PreferenceSource> Preferences(const std::string& yaml, uint64_t seed = 1) {
  ConfigReader reader(Config::FromString(yaml));
  auto source = MakePreferenceSource(reader, seed);
  reader.Finish();
  return source;
}

// What `make` throws as E, or "" if it throws nothing.
template <class E, class F>
std::string MessageOf(F&& make) {
  try {
    make();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

}  // namespace hone::data
