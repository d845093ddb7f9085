// Strict YAML → structs.
//
// A module gives its struct a `void Read(ConfigReader&)` (or a free function) that names every field;
// whatever the file holds beyond them is an error that names file, line and the nearest valid key.
//
//   struct AdamWConfig {
//     double lr = 3e-4;          // peak
//     void Read(ConfigReader& r) { r.Optional("lr", &lr); }
//   };
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hone::runtime {

// One node of a parsed file (a map, a list or a scalar) together with where it stands.
class ConfigNode;

// A parsed config with overrides applied. Cheap to copy.
class Config {
 public:
  // A file may begin with `extends: FILE`, a path from its own folder: it then says only what differs.
  // Maps are merged key by key, lists of maps that have `name` entry by entry; anything else, and
  // what the other file does not have, is taken from this one.
  static Config FromFile(const std::string& path);
  static Config FromString(const std::string& text, const std::string& name = "<string>");

  // "stages.base.steps=20": a path through maps; a list of maps that have `name` is entered by name, any
  // list by number. The value is parsed as YAML. ConfigError on a path that leads nowhere.
  void Override(const std::string& assignment);
  std::string ToYaml() const;  // as resolved, overrides included; comments are lost
  std::shared_ptr<ConfigNode> root() const { return root_; }

 private:
  std::shared_ptr<ConfigNode> root_;
};

// Reads one map. Every key asked for is marked as known; `Finish` throws ConfigError on the others:
//   r1_tiny.yaml:12: unknown key 'learing_rate' in stages.base; did you mean 'learning_rate'?
// A wrong type is an error of the same form. Environment variables in string values, "${NAME}", are
// expanded; one that is not set is an error that says so.
class ConfigReader {
 public:
  ConfigReader(std::shared_ptr<ConfigNode> node, std::string path);
  explicit ConfigReader(const Config& config);

  bool Has(std::string_view key) const;
  // What stands at a key that may hold more than one form; false when absent.
  bool IsList(std::string_view key) const;
  bool IsMap(std::string_view key) const;
  // T: bool, int, int64_t, double, std::string, std::vector of those.
  template <class T>
  void Required(std::string_view key, T* value);
  template <class T>
  void Optional(std::string_view key, T* value);  // leaves *value alone when absent
  // One of a fixed set of words: an error lists them.
  int OneOf(std::string_view key, const std::vector<std::string>& words, int otherwise);

  // A nested map; an absent one reads as empty. The child's Finish is called by the parent's Finish.
  ConfigReader& Map(std::string_view key);
  // A list of maps.
  std::vector<ConfigReader*> List(std::string_view key);
  // The keys of this map in file order, for maps whose keys are data (reward weights): marks them known.
  std::vector<std::string> Keys();

  // Where a key stands, for errors found later: "r1_tiny.yaml:12: stages.base.lr".
  std::string Where(std::string_view key = "") const;
  [[noreturn]] void Fail(std::string_view key, const std::string& message) const;
  void Finish();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// The nearest of `candidates` to `word` by edit distance, or "" when none is near.
std::string NearestWord(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace hone::runtime

namespace hone {
using runtime::Config;
using runtime::ConfigReader;
}  // namespace hone
