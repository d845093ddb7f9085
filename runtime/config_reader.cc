#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "runtime/config.h"
#include "runtime/config_node.h"
#include "runtime/error.h"

namespace hone::runtime {

using Kind = ConfigNode::Kind;

struct ConfigReader::Impl {
  std::shared_ptr<ConfigNode> node;  // a map, or null: empty
  std::string path;                  // "stages.base"; "" at the top
  std::vector<std::string> known;    // in the order asked for
  std::map<std::string, std::unique_ptr<ConfigReader>, std::less<>> maps;
  std::map<std::string, std::vector<std::unique_ptr<ConfigReader>>, std::less<>> lists;

  ConfigNode* Take(std::string_view key) {
    if (std::find(known.begin(), known.end(), key) == known.end()) known.emplace_back(key);
    ConfigNode::Entry* entry = node->Find(key);
    return entry ? entry->value.get() : nullptr;
  }
  std::string Inside() const { return path.empty() ? "at the top" : "in " + path; }
  std::string Join(std::string_view key) const {
    return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
  }
};

namespace {

// Replaces ${NAME}; throws the name of one that is not set.
std::string ExpandEnvironment(const std::string& text) {
  std::string out;
  size_t at = 0;
  for (;;) {
    size_t open = text.find("${", at);
    size_t close = open == std::string::npos ? open : text.find('}', open);
    if (close == std::string::npos) return out + text.substr(at);
    std::string name = text.substr(open + 2, close - open - 2);
    const char* value = std::getenv(name.c_str());
    Check<ConfigError>(value != nullptr, "environment variable {} is not set", name);
    out += text.substr(at, open - at) + value;
    at = close + 1;
  }
}

template <class Number>
bool ParseNumber(std::string text, Number* value) {
  std::erase(text, '_');
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  auto [end, error] = std::from_chars(begin, text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// Each returns what was wanted if the node is not that, else nullptr.
const char* Parse(const ConfigNode& node, bool* value) {
  *value = node.text == "true";
  return !node.quoted && (*value || node.text == "false") ? nullptr : "true or false";
}
const char* Parse(const ConfigNode& node, int* value) {
  return !node.quoted && ParseNumber(node.text, value) ? nullptr : "a whole number";
}
const char* Parse(const ConfigNode& node, int64_t* value) {
  return !node.quoted && ParseNumber(node.text, value) ? nullptr : "a whole number";
}
const char* Parse(const ConfigNode& node, double* value) {
  if (!node.quoted && (node.text == ".inf" || node.text == "-.inf")) {
    *value = node.text[0] == '-' ? -INFINITY : INFINITY;
    return nullptr;
  }
  bool ok = !node.quoted && ParseNumber(node.text, value) && std::isfinite(*value);
  return ok ? nullptr : "a number";
}
const char* Parse(const ConfigNode& node, std::string* value) {
  *value = ExpandEnvironment(node.text);
  return nullptr;
}

template <class T>
void ReadValue(const ConfigReader& reader, std::string_view key, const ConfigNode& node, T* value) {
  T parsed{};
  const char* wanted = nullptr;
  try {
    wanted = node.kind == Kind::kScalar ? Parse(node, &parsed) : "a single value";
  } catch (const ConfigError& e) {
    reader.Fail(key, e.what());
  }
  if (wanted) reader.Fail(key, fmt::format("{} is wanted, not {}", wanted, node.Describe()));
  *value = std::move(parsed);
}

template <class T>
void ReadValue(const ConfigReader& reader, std::string_view key, const ConfigNode& node,
               std::vector<T>* value) {
  if (node.kind != Kind::kList) {
    reader.Fail(key, fmt::format("a list is wanted, not {}", node.Describe()));
  }
  std::vector<T> list;
  for (const auto& item : node.items) {
    T element{};
    ReadValue(reader, key, *item, &element);
    list.push_back(std::move(element));
  }
  *value = std::move(list);
}

std::string Quoted(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

}  // namespace

ConfigReader::ConfigReader(std::shared_ptr<ConfigNode> node, std::string path)
    : impl_(std::make_shared<Impl>()) {
  impl_->node = std::move(node);
  impl_->path = std::move(path);
}

ConfigReader::ConfigReader(const Config& config) : ConfigReader(config.root(), "") {}

bool ConfigReader::Has(std::string_view key) const { return impl_->node->Find(key) != nullptr; }

bool ConfigReader::IsList(std::string_view key) const {
  ConfigNode::Entry* entry = impl_->node->Find(key);
  return entry && entry->value->kind == Kind::kList;
}

bool ConfigReader::IsMap(std::string_view key) const {
  ConfigNode::Entry* entry = impl_->node->Find(key);
  return entry && entry->value->kind == Kind::kMap;
}

template <class T>
void ConfigReader::Optional(std::string_view key, T* value) {
  if (ConfigNode* node = impl_->Take(key)) ReadValue(*this, key, *node, value);
}

template <class T>
void ConfigReader::Required(std::string_view key, T* value) {
  ConfigNode* node = impl_->Take(key);
  if (!node) {
    std::string near = NearestWord(key, impl_->node->KeyNames());
    bool taken = std::find(impl_->known.begin(), impl_->known.end(), near) != impl_->known.end();
    std::string hint = near.empty() || taken ? "" : fmt::format("; is '{}' meant?", near);
    throw ConfigError(fmt::format("{}: key '{}' is missing {}{}", impl_->node->place, key,
                                  impl_->Inside(), hint));
  }
  ReadValue(*this, key, *node, value);
}

#define HONE_CONFIG_TYPE(T)                                                                \
  template void ConfigReader::Optional<T>(std::string_view, T*);                           \
  template void ConfigReader::Required<T>(std::string_view, T*);                           \
  template void ConfigReader::Optional<std::vector<T>>(std::string_view, std::vector<T>*); \
  template void ConfigReader::Required<std::vector<T>>(std::string_view, std::vector<T>*);
HONE_CONFIG_TYPE(bool)
HONE_CONFIG_TYPE(int)
HONE_CONFIG_TYPE(int64_t)
HONE_CONFIG_TYPE(double)
HONE_CONFIG_TYPE(std::string)
#undef HONE_CONFIG_TYPE

int ConfigReader::OneOf(std::string_view key, const std::vector<std::string>& words,
                        int otherwise) {
  std::string word;
  if (otherwise < 0) {
    Required(key, &word);
  } else {
    if (!impl_->Take(key)) return otherwise;
    Optional(key, &word);
  }
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == word) return static_cast<int>(i);
  }
  std::string near = NearestWord(word, words);
  Fail(key, fmt::format("'{}' is none of {}{}", word, Quoted(words),
                        near.empty() ? "" : fmt::format("; did you mean '{}'?", near)));
}

ConfigReader& ConfigReader::Map(std::string_view key) {
  ConfigNode* node = impl_->Take(key);
  auto found = impl_->maps.find(key);
  if (found != impl_->maps.end()) return *found->second;
  if (node && node->kind != Kind::kMap && node->kind != Kind::kNull) {
    Fail(key, fmt::format("a map is wanted, not {}", node->Describe()));
  }
  std::shared_ptr<ConfigNode> child;
  if (node) {
    child = impl_->node->Find(key)->value;
  } else {
    child = std::make_shared<ConfigNode>();
    child->place = impl_->node->place;
  }
  auto reader = std::make_unique<ConfigReader>(child, impl_->Join(key));
  return *impl_->maps.emplace(key, std::move(reader)).first->second;
}

std::vector<ConfigReader*> ConfigReader::List(std::string_view key) {
  ConfigNode* node = impl_->Take(key);
  if (node && node->kind != Kind::kList && node->kind != Kind::kNull) {
    Fail(key, fmt::format("a list is wanted, not {}", node->Describe()));
  }
  auto [found, fresh] = impl_->lists.try_emplace(std::string(key));
  if (fresh && node) {
    for (size_t i = 0; i < node->items.size(); ++i) {
      const auto& item = node->items[i];
      if (item->kind != Kind::kMap) {
        throw ConfigError(fmt::format("{}: {}.{}: a map is wanted, not {}", item->place,
                                      impl_->Join(key), i, item->Describe()));
      }
      std::string label = item->Name().empty() ? std::to_string(i) : item->Name();
      found->second.push_back(
          std::make_unique<ConfigReader>(item, fmt::format("{}.{}", impl_->Join(key), label)));
    }
  }
  std::vector<ConfigReader*> readers;
  for (auto& reader : found->second) readers.push_back(reader.get());
  return readers;
}

std::vector<std::string> ConfigReader::Keys() {
  std::vector<std::string> keys = impl_->node->KeyNames();
  for (const std::string& key : keys) impl_->Take(key);
  return keys;
}

std::string ConfigReader::Where(std::string_view key) const {
  ConfigNode::Entry* entry = key.empty() ? nullptr : impl_->node->Find(key);
  std::string path = key.empty() ? impl_->path : impl_->Join(key);
  // A scalar's own place, since an override may have put it there.
  bool scalar = entry && entry->value->kind == Kind::kScalar;
  const std::string& place = scalar  ? entry->value->place
                             : entry ? entry->place
                                     : impl_->node->place;
  return path.empty() ? place : fmt::format("{}: {}", place, path);
}

void ConfigReader::Fail(std::string_view key, const std::string& message) const {
  throw ConfigError(fmt::format("{}: {}", Where(key), message));
}

void ConfigReader::Finish() {
  for (const ConfigNode::Entry& entry : impl_->node->entries) {
    const auto& known = impl_->known;
    if (std::find(known.begin(), known.end(), entry.key) != known.end()) continue;
    std::string near = NearestWord(entry.key, known);
    throw ConfigError(fmt::format("{}: unknown key '{}' {}; {}", entry.place, entry.key,
                                  impl_->Inside(),
                                  near.empty() ? fmt::format("known are: {}", Quoted(known))
                                               : fmt::format("did you mean '{}'?", near)));
  }
  for (auto& [key, map] : impl_->maps) map->Finish();
  for (auto& [key, list] : impl_->lists) {
    for (auto& reader : list) reader->Finish();
  }
}

}  // namespace hone::runtime
