#include "data/jsonl.h"

#include <fmt/format.h>

#include "data/text.h"
#include "runtime/error.h"
#include "runtime/file_system.h"
#include "runtime/json.h"

namespace hone::data {
namespace {

// A list of {role, content} maps; anything else is left out.
void ReadConversation(const std::string& name, const nlohmann::json& list, JsonlRecord* record) {
  std::vector<ChatMessage> messages;
  for (const auto& item : list) {
    auto text = [&](const char* key) {
      bool there = item.is_object() && item.contains(key) && item[key].is_string();
      return there ? item[key].get<std::string>() : "";
    };
    if (text("role").empty() || !item.contains("content") || !item["content"].is_string()) return;
    messages.push_back({text("role"), text("content"), text("reasoning_content")});
  }
  if (!messages.empty()) record->conversations[name] = std::move(messages);
}

JsonlRecord ParseLine(std::string_view line, std::string where) {
  Check<DataError>(!Trim(line).empty(), "{}: empty line; a JSON object was expected", where);
  JsonlRecord record;
  record.where = std::move(where);
  const nlohmann::json object = runtime::ParseJson(line, record.where);
  Check<DataError>(object.is_object(), "{}: a JSON {} where an object was expected", record.where,
                   object.type_name());
  for (const auto& [name, value] : object.items()) {
    if (value.is_string()) {
      record.fields[name] = value.get<std::string>();
    } else if (value.is_number() || value.is_boolean()) {
      record.fields[name] = value.dump();
    } else if (value.is_array()) {
      ReadConversation(name, value, &record);
    }
  }
  return record;
}

}  // namespace

const std::string& JsonlRecord::Field(const std::string& name) const {
  auto at = fields.find(name);
  if (at != fields.end()) return at->second;
  std::vector<std::string> names;
  for (const auto& [key, value] : fields) names.push_back(key);
  throw DataError(fmt::format("{}: no field '{}' that holds text or a number; it has: {}", where,
                              name, Join(names, ", ")));
}

const std::vector<ChatMessage>& JsonlRecord::Conversation(const std::string& name) const {
  auto at = conversations.find(name);
  Check<DataError>(at != conversations.end(),
                   "{}: no field '{}' that is a list of {{role, content}} maps with text", where,
                   name);
  return at->second;
}

std::vector<JsonlRecord> ParseJsonl(const std::string& text, const std::string& path) {
  std::vector<JsonlRecord> records;
  size_t begin = 0;
  while (begin < text.size()) {
    size_t end = std::min(text.find('\n', begin), text.size());
    records.push_back(ParseLine(std::string_view(text).substr(begin, end - begin),
                                fmt::format("{}:{}", path, records.size() + 1)));
    begin = end + 1;
  }
  Check<DataError>(!records.empty(), "{}: the file is empty", path);
  return records;
}

std::vector<JsonlRecord> ReadJsonl(const std::string& path) {
  return ParseJsonl(runtime::LocalFileSystem().ReadAll(path), path);
}

std::string FillTemplate(const std::string& text, const JsonlRecord& record) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    bool doubled = i + 1 < text.size() && text[i + 1] == text[i];
    if ((text[i] == '{' || text[i] == '}') && doubled) {
      out += text[i++];
    } else if (text[i] == '{') {
      size_t close = text.find('}', i);
      Check<ConfigError>(close != std::string::npos, "[template] '{}' has a '{{' without '}}'",
                         text);
      out += record.Field(text.substr(i + 1, close - i - 1));
      i = close;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace hone::data
