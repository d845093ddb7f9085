// Parsing of completions, answer rules and shaping rewards.
#include "rl/reward/verifier.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "rl/reward/shaping.h"
#include "runtime/error.h"
#include "tests/read_json.h"

namespace hone::rl {
namespace {

using nlohmann::json;

std::vector<json> ReadData(const std::string& name) {
  std::vector<json> rows;
  if (const char* root = std::getenv("HONE_DATA")) {
    std::ifstream file(std::string(root) + "/" + name);
    for (std::string line; std::getline(file, line);) rows.push_back(ParseJson(line));
  }
  return rows;
}
#define SKIP_WITHOUT_DATA(rows) \
  if (rows.empty()) GTEST_SKIP() << "set HONE_DATA to the folder of the data sets to run this"

TEST(ParseCompletion, AcceptsTheFormOnly) {
  auto good = ParseCompletion("<think>a\nb</think>\n<answer> 5 </answer>\n");
  EXPECT_TRUE(good.well_formed);
  EXPECT_EQ(good.thinking, "a\nb");
  EXPECT_EQ(good.answer, " 5 ");
  for (const char* bad :
       {"", "5", "<answer>5</answer>", "<think>a</think>5", "<think>a<answer>5</answer>",
        "<think>a</think><answer>5", "x<think>a</think><answer>5</answer>",
        "<think>a</think>x<answer>5</answer>", "<think>a</think><answer>5</answer>x",
        "<think><think>a</think><answer>5</answer>", "<answer>5</answer><think>a</think>",
        "<think>a</think><answer>5</answer><answer>5</answer>",
        "<think>a</think><answer><answer>5</answer>", "<think>a<answer>5</answer></think>",
        "<think>a</answer><answer>5</think>", "</think><think><answer></answer>",
        "<THINK>a</THINK><answer>5</answer>"}) {
    EXPECT_FALSE(ParseCompletion(bad).well_formed) << bad;
  }
}

TEST(ParseCompletion, FindsPartsOfWhatIsNotWellFormed) {
  auto cut = ParseCompletion("<think>never ends");
  EXPECT_EQ(cut.thinking, "never ends");
  EXPECT_FALSE(cut.has_answer);
  auto open = ParseCompletion("so <answer>7");
  EXPECT_TRUE(open.has_answer);
  EXPECT_EQ(open.answer, "7");
}

Outcome OutcomeOf(const std::string& verifier, const std::string& answer, const std::string& gold) {
  ParsedCompletion completion;
  completion.has_answer = true;
  completion.answer = answer;
  return Verify(verifier, completion, gold).outcome;
}

TEST(Verify, EachRule) {
  EXPECT_EQ(OutcomeOf("math", " 1,000 ", "1000"), Outcome::kCorrect);
  EXPECT_EQ(OutcomeOf("math", "999", "1000"), Outcome::kWrong);
  EXPECT_EQ(OutcomeOf("math", "none", "1000"), Outcome::kUnparseable);
  EXPECT_EQ(OutcomeOf("exact", "\n1,000 ", "1,000"), Outcome::kCorrect);
  EXPECT_EQ(OutcomeOf("exact", "1,000", "1000"), Outcome::kWrong);
  EXPECT_EQ(OutcomeOf("text", "The Elephant.", "elephant"), Outcome::kCorrect);
  EXPECT_EQ(OutcomeOf("text", "elephants", "elephant"), Outcome::kWrong);
  EXPECT_EQ(OutcomeOf("contains", "it is Paris, of course", "Paris"), Outcome::kCorrect);
  EXPECT_EQ(OutcomeOf("contains", "it is Rome", "Paris"), Outcome::kWrong);
  EXPECT_EQ(OutcomeOf("none", "", ""), Outcome::kCorrect);
  for (const std::string& name : VerifierNames())
    EXPECT_NO_THROW(OutcomeOf(name, "x", "y")) << name;
  EXPECT_THROW(OutcomeOf("maths", "1", "1"), ConfigError);
}

TEST(Verify, NoAnswerIsUnparseable) {
  for (const char* verifier : {"math", "exact", "choice"}) {
    EXPECT_EQ(Verify(verifier, ParseCompletion("the answer is 5"), "5").outcome,
              Outcome::kUnparseable);
  }
}

TEST(Verify, Choice) {
  for (const char* b :
       {"B", " B ", "(B)", "B.", "B. because A is wrong", "\\boxed{B}", "\\boxed{\\text{B}}",
        "The answer is B", "A or C? No: the answer is B, not D", "B不是 A", "**B**", "答案是B",
        "I think it is B"}) {
    EXPECT_EQ(OutcomeOf("choice", b, "B"), Outcome::kCorrect) << b;
    EXPECT_EQ(OutcomeOf("choice", b, "C"), Outcome::kWrong) << b;
  }
  for (const char* none : {"", "because", "Bob and Alice", "42", "I think so"}) {
    EXPECT_EQ(OutcomeOf("choice", none, "B"), Outcome::kUnparseable) << none;
  }
}

TEST(Verify, ChoicesOfTheDataSet) {
  auto rows = ReadData("math_equiv/choice_extraction_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  int judged = 0;
  for (auto& row : rows) {
    if (!row.contains("gold")) continue;
    ++judged;
    bool correct = OutcomeOf("choice", row["pred"], row["gold"]) == Outcome::kCorrect;
    EXPECT_EQ(correct, row["expected"]) << row;
  }
  EXPECT_EQ(judged, 8);
}

TEST(Verify, TextAndF1OfTheDataSet) {
  auto rows = ReadData("math_equiv/answer_verifiers_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  int judged = 0;
  for (auto& row : rows) {
    bool text = row["kind"] == "PuzzleMatcher", f1 = row["kind"] == "F1";
    if ((!text && !f1) || row["prediction"] == "") continue;
    std::string prediction = row["prediction"];
    ParsedCompletion completion = ParseCompletion(prediction);
    if (!completion.has_answer) {
      size_t end = prediction.find("</think>");
      completion.answer = end == std::string::npos ? prediction : prediction.substr(end + 8);
      completion.has_answer = true;
    }
    double best = 0;
    json labels = row["label"].is_array() ? row["label"] : json::array({row["label"]});
    for (auto& label : labels) {
      best = std::max(best, Verify(text ? "text" : "f1", completion, label).score);
    }
    EXPECT_NEAR(best, row["expected_score"].get<double>(), 1e-12) << row;
    ++judged;
  }
  EXPECT_EQ(judged, 20);
}

TEST(ScoreCompletion, EveryNamedReward) {
  RewardRequest request{.completion = "<think>First, I add two and two.</think><answer>4</answer>",
                        .verifier = "math",
                        .gold = "4",
                        .language = "en",
                        .completion_tokens = 50,
                        .max_new_tokens = 100,
                        .finished = true};
  RewardReply reply = ScoreCompletion(request);
  EXPECT_EQ(reply.outcome, Outcome::kCorrect);
  const std::map<std::string, double> expected = {
      {"accuracy", 1},   {"format", 1},           {"language", 1},  {"length", 1},
      {"repetition", 0}, {"cosine_length", 0.75}, {"tag_count", 1}, {"reasoning_steps", 1.0 / 3}};
  ASSERT_EQ(reply.rewards.size(), expected.size());
  for (const auto& [name, value] : expected)
    EXPECT_NEAR(reply.rewards.at(name), value, 1e-12) << name;
  for (const std::string& name : RewardNames()) {
    const size_t count = name.starts_with("story_") ? 0 : 1;  // of stories only: story_rule_test
    EXPECT_EQ(reply.rewards.count(name), count) << name;
  }

  request.finished = false;  // the right text, but cut by the limit
  request.gold = "5";
  request.language = "";
  reply = ScoreCompletion(request);
  EXPECT_EQ(reply.outcome, Outcome::kWrong);
  EXPECT_EQ(reply.rewards.at("format"), 0);
  EXPECT_EQ(reply.rewards.at("length"), 0);
  EXPECT_EQ(reply.rewards.at("cosine_length"), -0.75);
  EXPECT_EQ(reply.rewards.count("language"), 0u);  // the task names none
}

TEST(Shaping, ByHand) {
  EXPECT_DOUBLE_EQ(CosineLength(true, 0, 100), 1.0);
  EXPECT_DOUBLE_EQ(CosineLength(true, 100, 100), 0.5);
  EXPECT_DOUBLE_EQ(CosineLength(true, 1000, 100), 0.5);
  EXPECT_DOUBLE_EQ(CosineLength(false, 0, 100), -1.0);
  EXPECT_DOUBLE_EQ(CosineLength(false, 100, 100), -0.5);
  EXPECT_DOUBLE_EQ(RepetitionPenalty("我我我我", 2), -(1 - 1.0 / 3));
  EXPECT_DOUBLE_EQ(ReasoningSteps("1. a\n2. b\n- c\n* d\nStep 5: e"), 1.0);
  EXPECT_DOUBLE_EQ(ReasoningSteps("Next, 3.5 - 2"), 1.0 / 3);
  EXPECT_DOUBLE_EQ(TagCount("<think><think></think><answer>"), 0.5);
}

// Cases of open-r1's own tests, where the definition is the same.
TEST(Shaping, OpenR1Cases) {
  auto rows = ReadData("rewards/open_r1_reward_cases_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  int judged = 0;
  for (auto& row : rows) {
    std::string reward = row["reward"];
    for (auto& expect : row["expect"]) {
      if (!expect.contains("value") || expect["op"] != "==" || !row["completions"][0].is_string()) {
        continue;
      }
      size_t at = expect["index"];
      std::string text = row["completions"][at];
      std::string gold = row["solutions"].is_array() ? row["solutions"][at] : json("");
      bool correct = CompareMath(text, gold) == MathMatch::kEqual;
      double value;
      if (reward == "repetition_penalty_reward") {
        value = RepetitionPenalty(text, row["params"]["ngram_size"]);
      } else if (reward == "tag_count_reward") {
        value = TagCount(text);
      } else if (reward == "reasoning_steps_reward") {
        value = ReasoningSteps(text);
      } else if (reward == "accuracy_reward") {
        value = correct ? 1 : 0;
      } else if (reward == "format_reward") {
        value = ParseCompletion(text).well_formed ? 1 : 0;
      } else if (reward == "cosine_scaled_reward") {  // there by characters
        value = CosineLength(correct, static_cast<int64_t>(text.size()), row["params"]["max_len"]);
      } else {
        continue;
      }
      EXPECT_NEAR(value, expect["value"].get<double>(), reward[0] == 'c' ? 5e-3 : 5e-5) << row;
      ++judged;
    }
  }
  EXPECT_EQ(judged, 20);
}

}  // namespace
}  // namespace hone::rl
