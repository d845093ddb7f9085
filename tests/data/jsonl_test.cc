#include "data/jsonl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "data/split.h"
#include "tests/data/test_sources.h"

namespace hone::data {
namespace {

using ::testing::HasSubstr;

// A file that lives as long as the test.
class TempFile {
 public:
  explicit TempFile(const std::string& text) {
    path_ = std::filesystem::temp_directory_path() /
            ("hone_jsonl_" + std::to_string(reinterpret_cast<uintptr_t>(this)) + ".jsonl");
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

TEST(Jsonl, FieldsAreTextAndNumbers) {
  auto records =
      ParseJsonl("{\"a\": \"x\\ny\", \"n\": 3, \"list\": [1]}\r\n{\"a\": \"z\"}", "f.jsonl");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].Field("a"), "x\ny");
  EXPECT_EQ(records[0].Field("n"), "3");
  EXPECT_EQ(records[1].where, "f.jsonl:2");
  EXPECT_THAT(MessageOf<DataError>([&] { records[0].Field("list"); }),
              HasSubstr("f.jsonl:1: no field 'list'"));
}

TEST(Jsonl, BadLinesAreNamed) {
  auto message = [](const std::string& text) {
    return MessageOf<DataError>([&] { ParseJsonl(text, "f.jsonl"); });
  };
  EXPECT_THAT(message("{}\n\n{}\n"), HasSubstr("f.jsonl:2: empty line"));
  EXPECT_THAT(message("{}\n{\"a\": }\n"), HasSubstr("f.jsonl:2: not JSON"));
  EXPECT_THAT(message("{}\n{\"a\": " + std::string(100, '[') + std::string(100, ']') + "}\n"),
              HasSubstr("f.jsonl:2: JSON nested deeper than 100 levels"));
  EXPECT_EQ(message(R"({"a": ")" + std::string(200, '[') + R"(\"", "b": )" + std::string(99, '[') +
                    std::string(99, ']') + "}\n"),
            "");
  EXPECT_THAT(message("[1]\n"), HasSubstr("f.jsonl:1: a JSON array where an object"));
  EXPECT_THAT(message("{\"a\": \"\xFF\"}\n"), HasSubstr("f.jsonl:1: not JSON"));
  EXPECT_THAT(message(""), HasSubstr("f.jsonl: the file is empty"));
}

TEST(Jsonl, ProblemsFromFields) {
  TempFile file(
      "{\"question\": \"2+2?\", \"answer\": \"Add <<2+2=4>>them.\\n#### 4\"}\n"
      "{\"question\": \"3+3?\", \"answer\": \"Six.\\n#### 6\"}\n");
  auto source = Problems("{jsonl: " + file.path() +
                         ", prompt: question, answer_after: '#### ', remove_between: ['<<', '>>'], "
                         "prompt_template: '<user>{question}<bot>', language: en}");
  ASSERT_EQ(source->size(), 2);
  Problem p = source->At(0);
  EXPECT_EQ(p.prompt, "<user>2+2?<bot>");
  EXPECT_EQ(p.answer, "4");
  EXPECT_EQ(p.verifier, "math");
  EXPECT_EQ(p.language, "en");
  EXPECT_THAT(p.id, HasSubstr(".jsonl:1"));

  auto examples =
      Examples("{jsonl: " + file.path() +
               ", prompt: question, answer_after: '####', remove_between: ['<<', '>>'], "
               "completion_template: '<think>{reasoning}</think>{{{answer}}}'}");
  EXPECT_EQ(examples->At(0).completion, "<think>Add them.</think>{4}");
}

TEST(Jsonl, MissingFieldsAndMarksAreNamed) {
  TempFile file("{\"prompt\": \"a\", \"answer\": \"4\"}\n{\"prompt\": \"b\"}\n");
  EXPECT_THAT(MessageOf<DataError>([&] { Problems("{jsonl: " + file.path() + "}"); }),
              HasSubstr(".jsonl:2: no field 'answer'"));
  EXPECT_THAT(
      MessageOf<DataError>([&] { Problems("{jsonl: " + file.path() + ", answer_after: '#'}"); }),
      HasSubstr(".jsonl:1: field 'answer' has no '#'"));
  EXPECT_NO_THROW(Problems("{jsonl: " + file.path() + ", verifier: none}"));
  EXPECT_THAT(MessageOf<Error>([] { Problems("{jsonl: /does/not/exist.jsonl}"); }),
              HasSubstr("/does/not/exist.jsonl"));
}

TEST(Jsonl, SplitsAreDisjointAndWhole) {
  std::string text;
  for (int i = 0; i < 400; ++i) {
    text += "{\"prompt\": \"p" + std::to_string(i) + "\", \"completion\": \"c\"}\n";
  }
  TempFile file(text);
  auto train = Examples("{jsonl: " + file.path() + ", split: train}");
  auto heldout = Examples("{jsonl: " + file.path() + ", split: heldout}");
  EXPECT_EQ(train->size() + heldout->size(), 400);
  EXPECT_NEAR(static_cast<double>(heldout->size()), 25, 15);
  for (int64_t i = 0; i < heldout->size(); ++i) EXPECT_TRUE(IsHeldOut(heldout->At(i).prompt));
  EXPECT_EQ(Examples("{jsonl: " + file.path() + ", limit: 7}")->size(), 7);
}

TEST(Jsonl, PretrainingTextHasNoPrompt) {
  TempFile file("{\"text\": \"once\"}\n");
  Example e = Examples("{jsonl: " + file.path() + ", prompt: '', completion: text}")->At(0);
  EXPECT_EQ(e.prompt, "");
  EXPECT_EQ(e.completion, "once");
}

TEST(Jsonl, ConversationsThroughAChatTemplate) {
  TempFile file(
      "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", "
      "\"content\": \"<think>\\nwhy\\n</think>\\n\\nA\"}], \"prompt\": \"P\", \"completion\": "
      "\"C\"}\n");
  Example chat = Examples("{jsonl: " + file.path() + ", messages: messages, chat: chatml}")->At(0);
  EXPECT_EQ(chat.prompt, "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(chat.completion, "<think>\nwhy\n</think>\n\nA");
  Example r1 =
      Examples("{jsonl: " + file.path() + ", messages: messages, chat: deepseek_r1}")->At(0);
  EXPECT_EQ(r1.prompt, "<｜begin▁of▁sentence｜><｜User｜>Q<｜Assistant｜><think>\n");
  EXPECT_EQ(r1.completion, "why\n</think>\n\nA") << "the template opened the thinking";
  Example system = Examples("{jsonl: " + file.path() + ", chat: llama3, system: S}")->At(0);
  EXPECT_THAT(system.prompt, HasSubstr("system<|end_header_id|>\n\nS<|eot_id|>"));
  EXPECT_THAT(system.prompt, HasSubstr("user<|end_header_id|>\n\nP<|eot_id|>"));
  EXPECT_EQ(system.completion, "C");
  EXPECT_THAT(MessageOf<ConfigError>([&] { Examples("{jsonl: " + file.path() + ", system: S}"); }),
              HasSubstr("chat"));
  EXPECT_THAT(MessageOf<DataError>(
                  [&] { Examples("{jsonl: " + file.path() + ", chat: chatml, messages: turns}"); }),
              HasSubstr(".jsonl:1: no field 'turns'"));
}

// Whatever system message all of them share, it is the question that decides.
TEST(Jsonl, ConversationsAreSplitByWhatIsAskedFirst) {
  auto lines = [](const std::string& system) {
    std::string text;
    for (int i = 0; i < 400; ++i) {
      text += "{\"messages\": [" + system + R"({"role": "user", "content": "p)" +
              std::to_string(i) + R"("}, {"role": "assistant", "content": "c"}]})" + "\n";
    }
    return text;
  };
  std::vector<std::set<std::string>> asked;
  for (const char* system : {"", R"({"role": "system", "content": "s"}, )"}) {
    TempFile file(lines(system));
    auto heldout = Examples("{jsonl: " + file.path() +
                            ", messages: messages, chat: deepseek_v3, split: heldout}");
    EXPECT_NEAR(static_cast<double>(heldout->size()), 25, 15);
    std::set<std::string>& questions = asked.emplace_back();
    for (int64_t i = 0; i < heldout->size(); ++i) {
      const std::string prompt = heldout->At(i).prompt;
      questions.insert(prompt.substr(prompt.find("<｜User｜>")));
    }
  }
  EXPECT_EQ(asked[0], asked[1]);
}

TEST(Jsonl, WhatStandsBetweenTwoMarksIsCutOutOfConversationsToo) {
  TempFile file(R"({"messages": [{"role": "user", "content": "2<<x>>*3"}, {"role": "assistant", )"
                R"("content": "6<<y>>", "reasoning_content": "a<<z>>b"}]})"
                "\n");
  Example e = Examples("{jsonl: " + file.path() +
                       ", messages: messages, chat: chatml, remove_between: ['<<', '>>']}")
                  ->At(0);
  EXPECT_EQ(e.prompt, "<|im_start|>user\n2*3<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(e.completion, "<think>\nab\n</think>\n\n6");
}

TEST(Jsonl, PreferencesPairwiseAndPointwise) {
  TempFile file(
      "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", \"completion\": \"c\", "
      "\"safe\": false}\n");
  Preference pair = Preferences("{jsonl: " + file.path() + "}")->At(0);
  EXPECT_EQ(pair.chosen + pair.rejected, "ab");
  Preference point = Preferences("{jsonl: " + file.path() + ", label: safe}")->At(0);
  EXPECT_EQ(point.chosen, "");
  EXPECT_EQ(point.rejected, "c");
  EXPECT_THAT(
      MessageOf<DataError>([&] { Preferences("{jsonl: " + file.path() + ", label: chosen}"); }),
      HasSubstr(".jsonl:1: 'chosen' is 'a'"));
}

TEST(Jsonl, RealGsm8k) {
  const char* data = std::getenv("HONE_DATA");
  if (data == nullptr) GTEST_SKIP() << "set HONE_DATA to the folder with real data";
  auto problems = Problems(
      "{jsonl: '${HONE_DATA}/gsm8k/gsm8k_train.jsonl', prompt: question, answer_after: '#### '}");
  ASSERT_EQ(problems->size(), 7473);
  EXPECT_EQ(problems->At(0).answer, "72");
  auto examples = Examples(
      "{jsonl: '${HONE_DATA}/gsm8k/gsm8k_train.jsonl', prompt: question, answer_after: '#### ', "
      "remove_between: ['<<', '>>'], "
      "completion_template: '<think>{reasoning}</think><answer>{answer}</answer>'}");
  for (int64_t i = 0; i < examples->size(); ++i) {
    EXPECT_EQ(examples->At(i).completion.find("<<"), std::string::npos);
  }
}

}  // namespace
}  // namespace hone::data
