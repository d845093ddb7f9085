#include "data/jsonl.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/split.h"
#include "data/text.h"
#include "runtime/error.h"
#include "runtime/file_system.h"
#include "runtime/philox.h"

namespace hone::data {
namespace {

JsonlRecord ParseLine(std::string_view line, std::string where) {
  Check<DataError>(!Trim(line).empty(), "{}: empty line; a JSON object was expected", where);
  JsonlRecord record;
  record.where = std::move(where);
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(line);
  } catch (const nlohmann::json::exception& e) {
    throw DataError(fmt::format("{}: not JSON: {}", record.where, e.what()));
  }
  Check<DataError>(object.is_object(), "{}: a JSON {} where an object was expected", record.where,
                   object.type_name());
  for (const auto& [name, value] : object.items()) {
    if (value.is_string()) {
      record.fields[name] = value.get<std::string>();
    } else if (value.is_number() || value.is_boolean()) {
      record.fields[name] = value.dump();
    }
  }
  return record;
}

// What both kinds of source read from the config.
struct JsonlOptions {
  std::string path, prompt = "prompt", answer = "answer", completion = "completion";
  std::string answer_after, prompt_template, completion_template;
  std::vector<std::string> remove_between;
  int64_t limit = -1;
  Split split = Split::kAll;

  void Read(ConfigReader& config) {
    config.Required("jsonl", &path);
    config.Optional("prompt", &prompt);
    config.Optional("answer", &answer);
    config.Optional("answer_after", &answer_after);
    config.Optional("prompt_template", &prompt_template);
    config.Optional("remove_between", &remove_between);
    config.Optional("limit", &limit);
    split = ReadSplit(config, Split::kAll);
    if (!remove_between.empty() && remove_between.size() != 2) {
      config.Fail("remove_between", "wants two marks, the opening and the closing one");
    }
  }

  std::vector<JsonlRecord> Records() const {
    std::vector<JsonlRecord> kept;
    for (JsonlRecord& record : ReadJsonl(path)) {
      if (limit >= 0 && static_cast<int64_t>(kept.size()) == limit) break;
      if (split != Split::kAll && !InSplit(record.Field(prompt), split)) continue;
      for (auto& [name, value] : record.fields) value = WithoutMarked(value);
      SplitAnswer(&record);
      kept.push_back(std::move(record));
    }
    Check<DataError>(!kept.empty(), "{}: no line is left after split and limit", path);
    return kept;
  }
  std::string Prompt(const JsonlRecord& record) const {
    if (!prompt_template.empty()) return FillTemplate(prompt_template, record);
    return prompt.empty() ? "" : record.Field(prompt);
  }

 private:
  // Cuts out what stands between the two marks, marks included: GSM8K's <<48/2=24>>.
  std::string WithoutMarked(const std::string& text) const {
    if (remove_between.empty()) return text;
    std::string out;
    size_t from = 0;
    while (true) {
      size_t open = text.find(remove_between[0], from);
      size_t close = open == std::string::npos ? open : text.find(remove_between[1], open);
      if (close == std::string::npos) return out + text.substr(from);
      out += text.substr(from, open - from);
      from = close + remove_between[1].size();
    }
  }
  // With `answer_after`, the answer field is "reasoning MARK answer".
  void SplitAnswer(JsonlRecord* record) const {
    if (answer_after.empty()) return;
    const std::string& whole = record->Field(answer);
    size_t mark = whole.rfind(answer_after);
    Check<DataError>(mark != std::string::npos, "{}: field '{}' has no '{}'", record->where, answer,
                     answer_after);
    std::string reasoning(Trim(std::string_view(whole).substr(0, mark)));
    std::string gold(Trim(std::string_view(whole).substr(mark + answer_after.size())));
    record->fields["reasoning"] = std::move(reasoning);
    record->fields[answer] = std::move(gold);
  }
};

template <class Item, class Base>
class ListSource : public Base {
 public:
  explicit ListSource(std::vector<Item> items) : items_(std::move(items)) {}
  int64_t size() const override { return static_cast<int64_t>(items_.size()); }
  Item At(int64_t index) const override {
    Check(index >= 0 && index < size(), "[jsonl] item {} of {}", index, size());
    return items_[static_cast<size_t>(index)];
  }

 private:
  std::vector<Item> items_;
};

}  // namespace

const std::string& JsonlRecord::Field(const std::string& name) const {
  auto at = fields.find(name);
  if (at != fields.end()) return at->second;
  std::vector<std::string> names;
  for (const auto& [key, value] : fields) names.push_back(key);
  throw DataError(fmt::format("{}: no field '{}' that holds text or a number; it has: {}", where,
                              name, Join(names, ", ")));
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

std::unique_ptr<ProblemSource> MakeJsonlProblems(ConfigReader& config) {
  JsonlOptions options;
  options.Read(config);
  std::string language, language_field, id_field;
  config.Optional("language", &language);
  config.Optional("language_field", &language_field);
  config.Optional("id", &id_field);
  const std::vector<std::string> verifiers = {"math", "exact", "choice", "contains", "none"};
  const std::vector<std::string> kinds = {"reasoning", "general"};
  size_t verifier = static_cast<size_t>(config.OneOf("verifier", verifiers, 0));
  size_t kind = static_cast<size_t>(config.OneOf("kind", kinds, 0));
  std::vector<Problem> problems;
  for (const JsonlRecord& record : options.Records()) {
    Problem problem;
    problem.id = id_field.empty() ? record.where.substr(record.where.rfind('/') + 1)
                                  : record.Field(id_field);
    problem.prompt = options.Prompt(record);
    problem.verifier = verifiers[verifier];
    if (problem.verifier != "none") problem.answer = record.Field(options.answer);
    problem.language = language_field.empty() ? language : record.Field(language_field);
    problem.kind = kinds[kind];
    problems.push_back(std::move(problem));
  }
  return std::make_unique<ListSource<Problem, ProblemSource>>(std::move(problems));
}

std::unique_ptr<ExampleSource> MakeJsonlExamples(ConfigReader& config) {
  JsonlOptions options;
  options.Read(config);
  config.Optional("completion", &options.completion);
  config.Optional("completion_template", &options.completion_template);
  std::vector<Example> examples;
  for (const JsonlRecord& record : options.Records()) {
    examples.push_back(
        {options.Prompt(record), options.completion_template.empty()
                                     ? record.Field(options.completion)
                                     : FillTemplate(options.completion_template, record)});
  }
  return std::make_unique<ListSource<Example, ExampleSource>>(std::move(examples));
}

}  // namespace hone::data
