#include "runtime/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>

#include "runtime/config_node.h"
#include "runtime/error.h"
#include "runtime/file_system.h"

namespace hone::runtime {

using Kind = ConfigNode::Kind;

ConfigNode::Entry* ConfigNode::Find(std::string_view key) {
  for (Entry& entry : entries) {
    if (entry.key == key) return &entry;
  }
  return nullptr;
}

std::vector<std::string> ConfigNode::KeyNames() const {
  std::vector<std::string> names;
  for (const Entry& entry : entries) names.push_back(entry.key);
  return names;
}

std::string ConfigNode::Name() const {
  for (const Entry& entry : entries) {
    if (entry.key == "name" && entry.value->kind == Kind::kScalar) return entry.value->text;
  }
  return "";
}

ConfigNode::Ptr ConfigNode::Clone() const {
  auto copy = std::make_shared<ConfigNode>(*this);
  for (Ptr& item : copy->items) item = item->Clone();
  for (Entry& entry : copy->entries) entry.value = entry.value->Clone();
  return copy;
}

std::string ConfigNode::Describe() const {
  switch (kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a map";
    case Kind::kScalar:
      return quoted ? fmt::format("the text \"{}\"", text) : fmt::format("'{}'", text);
  }
  return "?";
}

std::string NearestWord(std::string_view word, const std::vector<std::string>& candidates) {
  std::string nearest;
  size_t best = std::max<size_t>(2, word.size() / 3) + 1;  // farther than this is no misspelling
  for (const std::string& candidate : candidates) {
    // Edit distance with swaps of neighbours (optimal string alignment), three rows at a time.
    size_t n = candidate.size();
    std::vector<size_t> before(n + 1), last(n + 1), row(n + 1);
    for (size_t j = 0; j <= n; ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      before = std::exchange(last, row);
      row[0] = i;
      for (size_t j = 1; j <= n; ++j) {
        bool same = word[i - 1] == candidate[j - 1];
        row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0 : 1)});
        bool swapped =
            i > 1 && j > 1 && word[i - 1] == candidate[j - 2] && word[i - 2] == candidate[j - 1];
        if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    if (row[n] < best) {
      best = row[n];
      nearest = candidate;
    }
  }
  return nearest;
}

namespace {

// "name:line"; an override has no lines.
std::string PlaceOf(const YAML::Node& node, const std::string& name, bool with_line) {
  return with_line ? fmt::format("{}:{}", name, node.Mark().line + 1) : name;
}

ConfigNode::Ptr Convert(const YAML::Node& yaml, const std::string& name, bool with_line) {
  auto node = std::make_shared<ConfigNode>();
  node->place = PlaceOf(yaml, name, with_line);
  if (yaml.IsScalar()) {
    node->kind = Kind::kScalar;
    node->text = yaml.Scalar();
    node->quoted = yaml.Tag() == "!";
  } else if (yaml.IsSequence()) {
    node->kind = Kind::kList;
    for (const YAML::Node& item : yaml) node->items.push_back(Convert(item, name, with_line));
  } else if (yaml.IsMap()) {
    node->kind = Kind::kMap;
    for (const auto& pair : yaml) {
      std::string place = PlaceOf(pair.first, name, with_line);
      Check<ConfigError>(pair.first.IsScalar(), "{}: a key must be plain text", place);
      std::string key = pair.first.Scalar();
      Check<ConfigError>(!node->Find(key), "{}: key '{}' is there twice", place, key);
      node->entries.push_back({key, place, Convert(pair.second, name, with_line)});
    }
  }
  return node;
}

ConfigNode::Ptr Parse(const std::string& text, const std::string& name, bool with_line) {
  try {
    std::vector<YAML::Node> documents = YAML::LoadAll(text);
    Check<ConfigError>(documents.size() <= 1, "{}: holds {} YAML documents; one is wanted", name,
                       documents.size());
    YAML::Node root = documents.empty() ? YAML::Node() : documents[0];
    if (!documents.empty()) return Convert(root, name, with_line);
    auto empty = std::make_shared<ConfigNode>();
    empty->place = name;
    return empty;
  } catch (const YAML::Exception& e) {
    std::string place = with_line ? fmt::format("{}:{}", name, e.mark.line + 1) : name;
    throw ConfigError(fmt::format("{}: not YAML: {}", place, e.msg));
  }
}

void Emit(YAML::Emitter& out, const ConfigNode& node) {
  switch (node.kind) {
    case Kind::kNull:
      out << YAML::Null;
      break;
    case Kind::kScalar:
      if (node.quoted) out << YAML::DoubleQuoted;
      out << node.text;
      break;
    case Kind::kList:
      out << YAML::BeginSeq;
      for (const auto& item : node.items) Emit(out, *item);
      out << YAML::EndSeq;
      break;
    case Kind::kMap:
      out << YAML::BeginMap;
      for (const auto& entry : node.entries) {
        out << YAML::Key << entry.key << YAML::Value;
        Emit(out, *entry.value);
      }
      out << YAML::EndMap;
      break;
  }
}

std::vector<std::string> SplitPath(const std::string& path) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (;;) {
    size_t dot = path.find('.', begin);
    parts.push_back(path.substr(begin, dot - begin));
    if (dot == std::string::npos) return parts;
    begin = dot + 1;
  }
}

// The slot of `node` that one part of an override's path names; a map grows a new one.
ConfigNode::Ptr& Enter(ConfigNode& node, const std::string& part, const std::string& place) {
  if (node.kind == Kind::kNull) node.kind = Kind::kMap;
  if (node.kind == Kind::kMap) {
    if (!node.Find(part)) {
      auto empty = std::make_shared<ConfigNode>();
      empty->place = place;
      node.entries.push_back({part, place, empty});
    }
    return node.Find(part)->value;
  }
  Check<ConfigError>(node.kind == Kind::kList, "{}: '{}' stands under {} ({}), which has no parts",
                     place, part, node.Describe(), node.place);
  std::vector<std::string> names;
  for (auto& item : node.items) {
    if (item->Name() == part) return item;
    if (!item->Name().empty()) names.push_back(item->Name());
  }
  size_t index = 0;
  auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
  bool number = error == std::errc() && end == part.data() + part.size();
  if (number && index < node.items.size()) return node.items[index];
  std::string near = NearestWord(part, names);
  throw ConfigError(fmt::format("{}: no '{}' in the list at {} of {} entries{}", place, part,
                                node.place, node.items.size(),
                                near.empty() ? "" : fmt::format("; did you mean '{}'?", near)));
}

bool IsNamedList(const ConfigNode& node) {
  return node.kind == Kind::kList && !node.items.empty() &&
         std::all_of(node.items.begin(), node.items.end(),
                     [](const auto& item) { return !item->Name().empty(); });
}

// Entries are put together by their names: which of two is meant nobody could say.
void CheckNamesDiffer(const ConfigNode& list) {
  std::map<std::string, std::string> places;
  for (const ConfigNode::Ptr& item : list.items) {
    const auto [first, fresh] = places.emplace(item->Name(), item->place);
    Check<ConfigError>(fresh, "{}: '{}' is the name of another entry ({}), too", item->place,
                       item->Name(), first->second);
  }
}

// Puts what `from` says over `onto`.
void Merge(const ConfigNode::Ptr& from, ConfigNode::Ptr* onto) {
  if (from->kind == Kind::kMap && (*onto)->kind == Kind::kMap) {
    for (const ConfigNode::Entry& entry : from->entries) {
      if (ConfigNode::Entry* there = (*onto)->Find(entry.key)) {
        there->place = entry.place;
        Merge(entry.value, &there->value);
      } else {
        (*onto)->entries.push_back(entry);
      }
    }
  } else if (IsNamedList(*from) && IsNamedList(**onto)) {
    CheckNamesDiffer(*from);
    CheckNamesDiffer(**onto);
    for (const ConfigNode::Ptr& item : from->items) {
      auto same = std::find_if((*onto)->items.begin(), (*onto)->items.end(),
                               [&](const auto& other) { return other->Name() == item->Name(); });
      if (same == (*onto)->items.end()) {
        (*onto)->items.push_back(item);
      } else {
        Merge(item, &*same);
      }
    }
  } else {
    *onto = from;
  }
}

constexpr int kMostExtends = 8;

}  // namespace

Config Config::FromFile(const std::string& path) {
  std::string text;
  try {
    text = LocalFileSystem().ReadAll(path);
  } catch (const IoError& e) {
    throw ConfigError(fmt::format("[config] {}", e.what()));
  }
  Config config = FromString(text, path);
  std::filesystem::path file = path;
  for (int depth = 0; ConfigNode::Entry* extends = config.root_->Find("extends"); ++depth) {
    const std::string place = extends->place;
    Check<ConfigError>(extends->value->kind == Kind::kScalar,
                       "{}: extends: a file is wanted, not {}", place, extends->value->Describe());
    Check<ConfigError>(depth < kMostExtends, "{}: extends: more than {} files extend each other",
                       place, kMostExtends);
    file = file.parent_path() / extends->value->text;
    ConfigNode::Ptr own = config.root_;
    std::erase_if(own->entries, [](const auto& entry) { return entry.key == "extends"; });
    try {
      config = FromString(LocalFileSystem().ReadAll(file.string()), file.string());
    } catch (const IoError& e) {
      throw ConfigError(fmt::format("{}: extends: {}", place, e.what()));
    }
    Merge(own, &config.root_);
  }
  return config;
}

Config Config::FromString(const std::string& text, const std::string& name) {
  Config config;
  config.root_ = Parse(text, name, true);
  bool map = config.root_->kind == Kind::kMap || config.root_->kind == Kind::kNull;
  Check<ConfigError>(map, "{}: a config is a map; this is {}", config.root_->place,
                     config.root_->Describe());
  return config;
}

void Config::Override(const std::string& assignment) {
  std::string place = "--set " + assignment;
  size_t equals = assignment.find('=');
  Check<ConfigError>(equals != std::string::npos && equals > 0,
                     "{}: wants the form path.to.key=value", place);
  ConfigNode::Ptr value = Parse(assignment.substr(equals + 1), place, false);
  root_ = root_->Clone();  // copies of this Config keep theirs
  ConfigNode::Ptr* slot = &root_;
  for (const std::string& part : SplitPath(assignment.substr(0, equals))) {
    Check<ConfigError>(!part.empty(), "{}: the path has an empty part", place);
    slot = &Enter(**slot, part, place);
  }
  *slot = value;
}

std::string Config::ToYaml() const {
  YAML::Emitter out;
  Emit(out, *root_);
  return std::string(out.c_str()) + "\n";
}

}  // namespace hone::runtime
