// Conversations against what Jinja makes of the models' own templates
// (tests/fixtures/make_chat_fixtures.py).
#include "data/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/data/test_sources.h"
#include "tests/read_json.h"

namespace hone::data {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json Fixture() { return ReadJson(std::string(HONE_SOURCE_DIR) + "/tests/fixtures/chat.json"); }

std::vector<ChatMessage> MessagesOf(const json& list) {
  std::vector<ChatMessage> messages;
  for (const auto& pair : list) messages.push_back({pair[0], pair[1], ""});
  return messages;
}
ChatOptions OptionsOf(const json& item) {
  ChatOptions options;
  options.add_generation_prompt = item["generate"];
  options.think = item["think"];
  return options;
}

TEST(ChatTemplate, NamedTemplatesPrintWhatJinjaPrints) {
  std::set<std::string> names;
  for (const auto& item : Fixture()) {
    std::string name = item["template"];
    // The distilled models' template is a variant of R1's: below, by its own text.
    if (name == "deepseek_r1") continue;
    names.insert(name);
    EXPECT_EQ(ChatTemplate::Named(name).Text(MessagesOf(item["messages"]), OptionsOf(item)),
              item["text"].get<std::string>())
        << name << " " << item["messages"];
  }
  EXPECT_EQ(names.size(), 8u);
}

TEST(ChatTemplate, RealTemplatesAreRecognised) {
  const char* data = std::getenv("HONE_DATA");
  if (data == nullptr) GTEST_SKIP() << "set HONE_DATA to the folder with real data";
  int checked = 0;
  for (const auto& item : Fixture()) {
    std::string path = item["path"];
    if (path.empty()) continue;
    json config = ReadJson(std::string(data) + "/" + path);
    json bos = config.value("bos_token", json());
    std::string bos_text = bos.is_object()   ? bos["content"].get<std::string>()
                           : bos.is_string() ? bos.get<std::string>()
                                             : "";
    auto chat = ChatTemplate::Recognise(config["chat_template"], bos_text, path);
    EXPECT_EQ(chat.name(), item["template"].get<std::string>());
    EXPECT_EQ(chat.Text(MessagesOf(item["messages"]), OptionsOf(item)),
              item["text"].get<std::string>())
        << path << " " << item["messages"];
    ++checked;
  }
  EXPECT_GT(checked, 100);
  EXPECT_EQ(ChatTemplate::FromFolder(std::string(data) + "/tokenizers/minimind").name(),
            "minimind");
}

const std::vector<ChatMessage> kTurns = {{"user", "Q1", ""},
                                         {"assistant", "A1", "because"},
                                         {"user", "Q2", ""},
                                         {"assistant", "A2", ""}};

TEST(ChatTemplate, ThinkingIsKeptOrDroppedAsAsked) {
  auto text = [](const char* name, ChatOptions::Thinking thinking) {
    ChatOptions options;
    options.thinking = thinking;
    return ChatTemplate::Named(name).Text(kTurns, options);
  };
  using Thinking = ChatOptions::Thinking;
  for (const char* name : {"qwen3", "deepseek_r1"}) {
    EXPECT_THAT(text(name, Thinking::kAsTemplate), Not(HasSubstr("because"))) << name;
    EXPECT_THAT(text(name, Thinking::kKeep), HasSubstr("<think>\nbecause\n</think>\n\nA1"));
  }
  for (const auto& name : ChatTemplate::Names()) {
    EXPECT_THAT(text(name.c_str(), Thinking::kDrop), Not(HasSubstr("because"))) << name;
    EXPECT_THAT(text(name.c_str(), Thinking::kKeep), HasSubstr("because")) << name;
  }
}

TEST(ChatTemplate, R1OpensTheThinking) {
  ChatOptions options;
  options.add_generation_prompt = true;
  EXPECT_EQ(ChatTemplate::Named("deepseek_r1").Text({{"user", "Q", ""}}, options),
            "<｜begin▁of▁sentence｜><｜User｜>Q<｜Assistant｜><think>\n");
}

TEST(ChatTemplate, TheUnknownIsRefused) {
  EXPECT_THAT(MessageOf<ConfigError>([] { ChatTemplate::Named("qwen9"); }), HasSubstr("qwen2.5"));
  EXPECT_THAT(
      MessageOf<ConfigError>([] { ChatTemplate::Recognise("{{ '[INST]' }}", "", "x.json"); }),
      HasSubstr("x.json: this chat template is not known"));
  EXPECT_THAT(MessageOf<ConfigError>([] {
                ChatTemplate::Named("llama3").Text({{"tool", "x", ""}}, {});
              }),
              HasSubstr("llama3 has no role 'tool'"));
  EXPECT_THROW(ChatTemplate::Named("llama3").Text({}, {}), ConfigError);
}

}  // namespace
}  // namespace hone::data
