// The tree behind Config and ConfigReader. For those two alone.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/config.h"

namespace hone::runtime {

class ConfigNode {
 public:
  enum class Kind { kNull, kScalar, kList, kMap };
  using Ptr = std::shared_ptr<ConfigNode>;
  struct Entry {
    std::string key;
    std::string place;  // of the key
    Ptr value;
  };

  Kind kind = Kind::kNull;
  std::string place;    // "r1_tiny.yaml:12", or "--set a.b=1"
  std::string text;     // of a scalar
  bool quoted = false;  // a scalar in quotes is a string, whatever it looks like
  std::vector<Ptr> items;
  std::vector<Entry> entries;  // in file order

  Entry* Find(std::string_view key);
  std::vector<std::string> KeyNames() const;
  // The value of `name` in a map that has one, else "".
  std::string Name() const;
  Ptr Clone() const;
  std::string Describe() const;  // "the list", "the text 'abc'": for messages
};

}  // namespace hone::runtime
