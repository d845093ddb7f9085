// Sources that read JSONL files; the config keys are documented in docs/data.md.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "data/jsonl.h"
#include "data/split.h"
#include "data/text.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

// What both kinds of source read from the config.
struct JsonlOptions {
  std::string path, prompt = "prompt", answer = "answer", completion = "completion";
  std::string answer_after, prompt_template, completion_template;
  std::vector<std::string> remove_between;
  std::string chat, system, messages;
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
    config.Optional("chat", &chat);
    config.Optional("system", &system);
    config.Optional("messages", &messages);
    if (chat.empty() && !(system.empty() && messages.empty())) {
      config.Fail("chat", "is needed for system and messages: the template's name or folder");
    }
    if (!chat.empty()) template_ = ChatTemplate::Load(chat);
    split = ReadSplit(config, Split::kAll);
    if (!remove_between.empty() && remove_between.size() != 2) {
      config.Fail("remove_between", "wants two marks, the opening and the closing one");
    }
  }

  std::vector<JsonlRecord> Records() const {
    std::vector<JsonlRecord> kept;
    for (JsonlRecord& record : ReadJsonl(path)) {
      if (limit >= 0 && static_cast<int64_t>(kept.size()) == limit) break;
      if (split != Split::kAll && !InSplit(Key(record), split)) continue;
      RemoveMarked(&record);
      SplitAnswer(&record);
      kept.push_back(std::move(record));
    }
    Check<DataError>(!kept.empty(), "{}: no line is left after split and limit", path);
    return kept;
  }
  // The text that the model continues.
  std::string Prompt(const JsonlRecord& record) const {
    if (!template_) return PlainPrompt(record);
    ChatOptions options;
    options.add_generation_prompt = true;
    return template_->Text(Turns(record), options);
  }
  // What it is to write. A template may have opened the thinking already.
  std::string Completion(const JsonlRecord& record) const {
    std::string text;
    if (!messages.empty()) {
      const ChatMessage& last = record.Conversation(messages).back();
      Check<DataError>(last.role == "assistant",
                       "{}: the last of '{}' is a turn of '{}', not of "
                       "the assistant",
                       record.where, messages, last.role);
      text = last.reasoning.empty()
                 ? last.content
                 : "<think>\n" + last.reasoning + "\n</think>\n\n" + last.content;
    } else {
      text = completion_template.empty() ? record.Field(completion)
                                         : FillTemplate(completion_template, record);
    }
    constexpr std::string_view kOpen = "<think>\n";
    if (template_ && text.starts_with(kOpen) && Prompt(record).ends_with(kOpen)) {
      text.erase(0, kOpen.size());
    }
    return text;
  }

 private:
  std::string PlainPrompt(const JsonlRecord& record) const {
    if (!prompt_template.empty()) return FillTemplate(prompt_template, record);
    return prompt.empty() ? "" : record.Field(prompt);
  }
  // The turns before the completion.
  std::vector<ChatMessage> Turns(const JsonlRecord& record) const {
    std::vector<ChatMessage> turns;
    if (!system.empty()) turns.push_back({"system", system, ""});
    if (messages.empty()) {
      turns.push_back({"user", PlainPrompt(record), ""});
      return turns;
    }
    const auto& all = record.Conversation(messages);
    size_t count = all.size() - (all.back().role == "assistant" ? 1 : 0);
    turns.insert(turns.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
    return turns;
  }
  // What decides on which side of the split a record is: of a conversation, what is asked first. A
  // system message may be that of every record.
  const std::string& Key(const JsonlRecord& record) const {
    if (messages.empty()) return record.Field(prompt);
    const auto& all = record.Conversation(messages);
    auto asked = std::find_if(all.begin(), all.end(),
                              [](const ChatMessage& turn) { return turn.role != "system"; });
    return asked == all.end() ? all[0].content : asked->content;
  }
  void RemoveMarked(JsonlRecord* record) const {
    for (auto& [name, value] : record->fields) value = WithoutMarked(value);
    for (auto& [name, turns] : record->conversations) {
      for (ChatMessage& turn : turns) {
        turn.content = WithoutMarked(turn.content);
        turn.reasoning = WithoutMarked(turn.reasoning);
      }
    }
  }
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

  std::optional<ChatTemplate> template_;
};

// A label of a pointwise preference: true, 1, "safe", "good" or their opposites.
bool IsGood(const JsonlRecord& record, const std::string& field) {
  const std::string& label = record.Field(field);
  for (const char* good : {"true", "1", "1.0", "safe", "good"}) {
    if (label == good) return true;
  }
  for (const char* bad : {"false", "0", "0.0", "unsafe", "bad"}) {
    if (label == bad) return false;
  }
  throw DataError(
      fmt::format("{}: '{}' is '{}'; true, 1, safe, good or false, 0, unsafe, bad were "
                  "expected",
                  record.where, field, label));
}

template <class Item>
class ListSource : public Source<Item> {
 public:
  void Add(Item item, const JsonlRecord& record) {
    items_.push_back(std::move(item));
    where_.push_back(record.where);
  }
  int64_t size() const override { return static_cast<int64_t>(items_.size()); }
  Item At(int64_t index) const override {
    Check(index >= 0 && index < size(), "[jsonl] item {} of {}", index, size());
    return items_[static_cast<size_t>(index)];
  }
  std::string Where(int64_t index) const override { return where_[static_cast<size_t>(index)]; }

 private:
  std::vector<Item> items_;
  std::vector<std::string> where_;
};

}  // namespace

std::unique_ptr<ProblemSource> MakeJsonlProblems(ConfigReader& config) {
  JsonlOptions options;
  options.Read(config);
  std::string language, language_field, id_field;
  config.Optional("language", &language);
  config.Optional("language_field", &language_field);
  config.Optional("id", &id_field);
  const std::vector<std::string> verifiers = {"math",   "exact",    "text", "f1",
                                              "choice", "contains", "none"};
  const std::vector<std::string> kinds = {"reasoning", "general"};
  size_t verifier = static_cast<size_t>(config.OneOf("verifier", verifiers, 0));
  size_t kind = static_cast<size_t>(config.OneOf("kind", kinds, 0));
  auto problems = std::make_unique<ListSource<Problem>>();
  for (const JsonlRecord& record : options.Records()) {
    Problem problem;
    problem.id = id_field.empty() ? record.where.substr(record.where.rfind('/') + 1)
                                  : record.Field(id_field);
    problem.prompt = options.Prompt(record);
    problem.verifier = verifiers[verifier];
    if (problem.verifier != "none") problem.answer = record.Field(options.answer);
    problem.language = language_field.empty() ? language : record.Field(language_field);
    problem.kind = kinds[kind];
    problems->Add(std::move(problem), record);
  }
  return problems;
}

std::unique_ptr<ExampleSource> MakeJsonlExamples(ConfigReader& config) {
  JsonlOptions options;
  options.Read(config);
  config.Optional("completion", &options.completion);
  config.Optional("completion_template", &options.completion_template);
  auto examples = std::make_unique<ListSource<Example>>();
  for (const JsonlRecord& record : options.Records()) {
    examples->Add({options.Prompt(record), options.Completion(record)}, record);
  }
  return examples;
}

std::unique_ptr<PreferenceSource> MakeJsonlPreferences(ConfigReader& config) {
  JsonlOptions options;
  options.Read(config);
  std::string chosen = "chosen", rejected = "rejected", completion = "completion", label;
  config.Optional("label", &label);
  if (label.empty()) {
    config.Optional("chosen", &chosen);
    config.Optional("rejected", &rejected);
  } else {
    config.Optional("completion", &completion);
  }
  auto preferences = std::make_unique<ListSource<Preference>>();
  for (const JsonlRecord& record : options.Records()) {
    Preference preference{options.Prompt(record), "", ""};
    if (label.empty()) {
      preference.chosen = record.Field(chosen);
      preference.rejected = record.Field(rejected);
    } else {
      (IsGood(record, label) ? preference.chosen : preference.rejected) = record.Field(completion);
    }
    preferences->Add(std::move(preference), record);
  }
  return preferences;
}

}  // namespace hone::data
