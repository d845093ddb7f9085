// JSON-lines files as problems and examples.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/task.h"

namespace hone::data {

// One line: its fields as text (strings as they are, numbers and booleans as JSON spells them;
// null, lists and maps left out), and where it stands.
struct JsonlRecord {
  std::map<std::string, std::string> fields;
  std::map<std::string, std::vector<ChatMessage>> conversations;  // lists of {role, content} maps
  std::string where;                                              // "file:line"

  // DataError naming the line and the fields it has.
  const std::string& Field(const std::string& name) const;
  const std::vector<ChatMessage>& Conversation(const std::string& name) const;
};

// The whole file. A line that is empty or no JSON object is a DataError with file:line, and so is a
// file without a line. CRLF line ends and a missing last line end are accepted.
std::vector<JsonlRecord> ReadJsonl(const std::string& path);
std::vector<JsonlRecord> ParseJsonl(const std::string& text, const std::string& path);

// Replaces each {name} by the record's field; "{{" and "}}" stand for braces.
std::string FillTemplate(const std::string& text, const JsonlRecord& record);

// The config keys are documented in docs/data.md.
std::unique_ptr<ProblemSource> MakeJsonlProblems(ConfigReader& config);
std::unique_ptr<ExampleSource> MakeJsonlExamples(ConfigReader& config);
std::unique_ptr<PreferenceSource> MakeJsonlPreferences(ConfigReader& config);

}  // namespace hone::data
