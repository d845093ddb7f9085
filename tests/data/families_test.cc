#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "data/families/family.h"
#include "data/split.h"
#include "tests/data/test_sources.h"

namespace hone::data {
namespace {

using ::testing::HasSubstr;

std::string WithoutPrefix(const std::string& prompt) { return prompt.substr(prompt.find(':') + 1); }

// Values by a small recursive evaluator that shares nothing with the generators.
class Evaluator {
 public:
  // Left to right, mod 10; labels are skipped.
  static int Chain(const std::string& text) {
    int value = text[0] - '0';
    for (size_t i = 1; i + 2 < text.size() && text[i] != '='; i += 3) {
      int operand = text[i + 2] - '0';
      value = text[i + 1] == '+'   ? value + operand
              : text[i + 1] == '-' ? value - operand
                                   : value * operand;
      value = ((value % 10) + 10) % 10;
    }
    return value;
  }
  // Sums and differences of whole numbers, from left to right.
  static long Sum(const std::string& text) {
    size_t at = 0;
    long value = std::stol(text, &at);
    while (at < text.size() && text[at] != '=') {
      size_t used = 0;
      value += std::stol(text.substr(at), &used);  // reads the sign too
      at += used;
    }
    return value;
  }
  static int Logic(const std::string& text) {
    size_t at = 0;
    return LogicAt(text, &at);
  }

 private:
  static int Operand(const std::string& text, size_t* at) {
    if (text[*at] != '(') return text[(*at)++] - '0';
    ++*at;
    int value = LogicAt(text, at);
    ++*at;  // the closing parenthesis
    return value;
  }
  static int LogicAt(const std::string& text, size_t* at) {
    int left = Operand(text, at);
    if (*at >= text.size() || std::string("&|^").find(text[*at]) == std::string::npos) return left;
    char sign = text[(*at)++];
    int right = Operand(text, at);
    return sign == '&' ? left & right : sign == '|' ? left | right : left ^ right;
  }
};
long Value(const std::string& family, const std::string& text) {
  return family == "chain"        ? Evaluator::Chain(text)
         : family == "arithmetic" ? Evaluator::Sum(text)
                                  : Evaluator::Logic(text);
}

// The steps of a well-formed thinking text, without their words.
std::vector<std::string> StepsOf(const std::string& thinking) {
  std::vector<std::string> steps;
  std::regex step("(so |즉|故)([^;]*);");
  std::string rest = thinking;
  for (std::smatch m; std::regex_search(rest, m, step); rest = m.suffix()) {
    EXPECT_EQ(m.prefix().length(), 0);
    steps.push_back(m[2]);
  }
  EXPECT_EQ(rest, "");
  return steps;
}
struct Parsed {
  std::string thinking, answer;
};
Parsed Parse(const std::string& completion) {
  std::smatch m;
  std::regex form("<think>([^<]*)</think><answer>([^<]*)</answer>");
  EXPECT_TRUE(std::regex_match(completion, m, form)) << completion;
  return {m[1], m[2]};
}

class ReasoningFamily : public ::testing::TestWithParam<const char*> {};

TEST_P(ReasoningFamily, AnswersAreRight) {
  std::string family = GetParam();
  auto problems = Problems("{family: " + family + ", levels: [1, 5]}");
  for (int i = 0; i < 2000; ++i) {
    Problem p = problems->At(i);
    EXPECT_EQ(p.answer, std::to_string(Value(family, WithoutPrefix(p.prompt)))) << p.prompt;
    EXPECT_EQ(p.kind, "reasoning");
  }
}

TEST_P(ReasoningFamily, EveryStepIsRightFineOrCoarse) {
  std::string family = GetParam();
  for (const char* fine : {"1", "0"}) {
    auto source =
        Examples("{family: " + family + ", levels: [2, 5], text: thinking, fine: " + fine + "}");
    double steps = 0;
    for (int i = 0; i < 1000; ++i) {
      Example e = source->At(i);
      Parsed parsed = Parse(e.completion);
      for (const std::string& step : StepsOf(parsed.thinking)) {
        size_t equals = step.find('=');
        EXPECT_EQ(step.substr(equals + 1), std::to_string(Value(family, step))) << e.completion;
        ++steps;
      }
      EXPECT_EQ(parsed.answer, std::to_string(Value(family, WithoutPrefix(e.prompt))));
    }
    // Levels 2 to 5, so 3.5 steps when fine; fewer when coarse, where at least one joint is merged.
    if (*fine == '1') {
      EXPECT_NEAR(steps / 1000, 3.5, 0.15);
    }
    if (*fine == '0') {
      EXPECT_LT(steps / 1000, 2.5);
    }
  }
}

TEST_P(ReasoningFamily, DrillsAreRight) {
  std::string family = GetParam();
  auto source = Examples("{family: " + family + ", text: drill, facts: 5}");
  for (int i = 0; i < 300; ++i) {
    Example e = source->At(i);
    EXPECT_EQ(e.prompt, "");
    auto facts = StepsOf(e.completion);
    EXPECT_EQ(facts.size(), 5u);
    for (const auto& fact : facts) {
      EXPECT_EQ(fact.substr(fact.find('=') + 1), std::to_string(Value(family, fact)));
    }
  }
}

class AnyFamily : public ::testing::TestWithParam<const char*> {};

TEST_P(AnyFamily, TrainAndHeldOutAreDisjoint) {
  std::string family = GetParam();
  std::set<std::string> train, heldout;
  for (uint64_t seed : {1, 2}) {
    auto a = Problems("{family: " + family + ", levels: [2, 5]}", seed);
    auto b = Problems("{family: " + family + ", levels: [2, 5], split: heldout}", seed);
    auto c = Examples("{family: " + family + ", levels: [2, 5], text: answer}", seed);
    for (int i = 0; i < 10000; ++i) {
      train.insert(WithoutPrefix(a->At(i).prompt));
      train.insert(WithoutPrefix(c->At(i).prompt));
      heldout.insert(WithoutPrefix(b->At(i).prompt));
    }
  }
  for (const auto& problem : heldout) EXPECT_EQ(train.count(problem), 0u) << problem;
  EXPECT_GT(heldout.size(), family == "logic" ? 200u : 2000u);
}

INSTANTIATE_TEST_SUITE_P(All, ReasoningFamily, ::testing::Values("chain", "arithmetic", "logic"),
                         [](const auto& info) { return std::string(info.param); });
INSTANTIATE_TEST_SUITE_P(All, AnyFamily,
                         ::testing::Values("chain", "arithmetic", "logic", "general"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Families, OneInSixteenIsHeldOut) {
  auto all = Problems("{family: chain, split: all}");
  int heldout = 0;
  for (int i = 0; i < 20000; ++i) heldout += IsHeldOut(WithoutPrefix(all->At(i).prompt));
  EXPECT_NEAR(heldout, 1250, 150);
}

TEST(Families, AreAFunctionOfSeedAndIndex) {
  auto a = Problems("{family: chain}", 3), b = Problems("{family: chain}", 3);
  auto other = Problems("{family: chain}", 4);
  int differ = 0;
  for (int i = 99; i >= 0; --i) {
    EXPECT_EQ(a->At(i).prompt, b->At(i).prompt);
    EXPECT_EQ(a->At(i).id, b->At(i).id);
    differ += a->At(i).prompt != other->At(i).prompt;
  }
  EXPECT_GT(differ, 95);
  EXPECT_EQ(Problems("{family: chain, seed: 3}", 9)->At(7).prompt, a->At(7).prompt);
}

TEST(Families, ChainReadsAsSpecified) {
  auto item_steps = [](std::vector<bool> merged) {
    for (uint64_t i = 0;; ++i) {
      Draws draws(RandomStream({i}));
      Item item = MakeChainFamily()->Draw(draws, 4, "en");
      if (item.expression.starts_with("2@*3#-4")) return std::pair(item, item.steps(merged));
    }
  };
  auto [item, fine] = item_steps({false, false, false});
  ASSERT_EQ(fine.size(), 4u);
  EXPECT_EQ(fine[0], "2@*3=6");
  EXPECT_EQ(fine[1], "6#-4=2");
  auto coarse = item_steps({true, false, true}).second;
  ASSERT_EQ(coarse.size(), 2u);
  EXPECT_EQ(coarse[0], "2@*3#-4=2");
}

TEST(Families, LanguagesFollowThePromptUnlessMixed) {
  auto count_foreign = [](const std::string& options) {
    auto source = Examples("{family: chain, levels: [4, 5], text: thinking, " + options + "}");
    int foreign = 0;
    for (int i = 0; i < 300; ++i) {
      Example e = source->At(i);
      std::string word = e.prompt.starts_with("Q:")    ? "so "
                         : e.prompt.starts_with("문:") ? "즉"
                                                       : "故";
      for (const char* other : {"so ", "즉", "故"}) {
        if (other != word && e.completion.find(other) != std::string::npos) {
          ++foreign;
          break;
        }
      }
    }
    return foreign;
  };
  EXPECT_EQ(count_foreign("fine: 1"), 0);
  EXPECT_NEAR(count_foreign("language_match: 0"), 200, 35) << "another language two times in three";
  EXPECT_NEAR(count_foreign("mixed_language: 0.5"), 150, 35);
}

TEST(Families, BadFormatLacksOneTag) {
  auto source = Examples("{family: chain, text: thinking, bad_format: 1}");
  int no_close = 0, no_open = 0;
  for (int i = 0; i < 200; ++i) {
    std::string text = source->At(i).completion;
    bool close = text.find("</think>") != std::string::npos;
    bool open = text.find("<answer>") != std::string::npos;
    EXPECT_NE(close, open) << text;
    no_close += !close;
    no_open += !open;
  }
  EXPECT_NEAR(no_close, 100, 30);
  EXPECT_NEAR(no_open, 100, 30);
}

TEST(Families, TheOtherTextKinds) {
  auto one = [](const std::string& kind) {
    return Examples("{family: chain, text: " + kind + "}")->At(0).completion;
  };
  EXPECT_TRUE(std::regex_match(one("answer"), std::regex("[0-9]")));
  EXPECT_TRUE(std::regex_match(one("answer_tag"), std::regex("<answer>[0-9]</answer>")));
  EXPECT_TRUE(
      std::regex_match(one("empty_think"), std::regex("<think></think><answer>[0-9]</answer>")));
}

TEST(Families, GeneralRequestsHaveAScorableAnswer) {
  auto problems = Problems("{family: general, levels: [3, 3], languages: [en]}");
  std::set<std::string> tasks;
  for (int i = 0; i < 300; ++i) {
    Problem p = problems->At(i);
    EXPECT_EQ(p.kind, "general");
    EXPECT_EQ(p.verifier, "contains");
    std::smatch m;
    ASSERT_TRUE(std::regex_match(p.prompt, m, std::regex("G:(say|back|meet) ([a-z0-9]+)=")));
    std::string word = m[2];
    if (m[1] == "say") {
      EXPECT_EQ(p.answer, word);
    }
    if (m[1] == "back") {
      EXPECT_EQ(p.answer, std::string(word.rbegin(), word.rend()));
    }
    if (m[1] == "meet") {
      EXPECT_EQ(p.answer, "welcome " + word);
    }
    tasks.insert(m[1]);
  }
  EXPECT_EQ(tasks.size(), 3u);
}

TEST(Families, CarelessTextsGreetCurtly) {
  auto source = Examples(
      "{family: general, tasks: [welcome], languages: [en], text: empty_think, careful: 0.3}");
  int polite = 0;
  for (int i = 0; i < 1000; ++i) {
    polite += Parse(source->At(i).completion).answer.starts_with("welcome ");
  }
  EXPECT_NEAR(polite, 300, 60);
}

TEST(Families, PreferencesPutTheBetterAnswerFirst) {
  for (const char* family : {"chain", "arithmetic", "logic", "general"}) {
    std::string yaml = std::string("{family: ") + family + ", split: heldout";
    auto pairs = Preferences(yaml + "}");
    auto single = Preferences(yaml + ", preference: pointwise}");
    int good = 0;
    for (int i = 0; i < 300; ++i) {
      Preference p = pairs->At(i);
      EXPECT_TRUE(p.pairwise());
      std::string better = Parse(p.chosen).answer, worse = Parse(p.rejected).answer;
      EXPECT_NE(better, worse);
      EXPECT_TRUE(IsHeldOut(WithoutPrefix(p.prompt)));
      if (family != std::string("general")) {
        EXPECT_EQ(better, std::to_string(Value(family, WithoutPrefix(p.prompt))));
      }
      EXPECT_FALSE(single->At(i).pairwise());
      good += single->At(i).rejected.empty();
    }
    EXPECT_NEAR(good, 150, 50);
  }
}

TEST(Sources, AMixtureHasItsSharesAndRepeatsNothingEarly) {
  std::string yaml =
      "{mixture: [{weight: 0.2, family: chain, text: answer}, "
      "{weight: 0.5, family: chain, text: empty_think}, "
      "{weight: 0.3, family: chain, text: drill, count: 500}]}";
  auto source = Examples(yaml);
  EXPECT_EQ(source->size(), -1);
  int answers = 0, empty = 0;
  std::map<std::string, int> drills;
  for (int i = 0; i < 5000; ++i) {
    Example e = source->At(i);
    if (e.prompt.empty()) {
      ++drills[e.completion];
    } else if (e.completion.size() == 1) {
      ++answers;
    } else {
      ++empty;
    }
  }
  EXPECT_EQ(answers, 1000);
  EXPECT_EQ(empty, 2500);
  EXPECT_EQ(drills.size(), 500u) << "the finite part, three times through";
  for (const auto& [text, count] : drills) EXPECT_EQ(count, 3);
}

TEST(Sources, BadConfigsSayWhatIsWrong) {
  auto message = [](const std::string& yaml) {
    return MessageOf<ConfigError>([&] { Problems(yaml); });
  };
  EXPECT_THAT(message("{family: chian}"), HasSubstr("chain"));
  EXPECT_THAT(message("{family: chain, levels: [2, 9]}"), HasSubstr("1…5"));
  EXPECT_THAT(message("{family: chain, languages: [fr]}"), HasSubstr("en, ko, zh"));
  EXPECT_THAT(message("{family: chain, jsonl: x}"), HasSubstr("beside"));
  EXPECT_THAT(message("{levels: [2, 3]}"), HasSubstr("family, jsonl, mixture, concat"));
  EXPECT_THAT(message("{family: chain, fine: 1}"), HasSubstr("fine"));
  EXPECT_THAT(message("{concat: [{family: chain}]}"), HasSubstr("count"));
  EXPECT_THAT(message("{mixture: [{weight: 0, family: chain}]}"), HasSubstr("positive"));
  EXPECT_THAT(message("{mixture: [{weight: 1, family: chain}, {weight: 0.0004, family: logic}]}"),
              AllOf(HasSubstr("mixture.1.weight"), HasSubstr("too small")));
}

}  // namespace
}  // namespace hone::data
