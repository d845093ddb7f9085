// Orders for stories: what a prompt says, what its gold says, and orders found in hindsight.
#include "data/families/story.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "data/split.h"
#include "tests/data/test_sources.h"

namespace hone::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Story, AnOrderIsAPromptAndAGold) {
  StoryOrder order{{"dog", "ball"}, "happy", 15, 40};
  EXPECT_EQ(StoryRequest(order), "Use dog, ball. Short. End with happy.\n");
  EXPECT_EQ(StoryGold(order), "dog,ball;happy;15-40");
  auto parsed = ParseStoryGold("dog,ball;happy;15-40");
  ASSERT_TRUE(parsed);
  EXPECT_THAT(parsed->words, ElementsAre("dog", "ball"));
  EXPECT_EQ(parsed->ending, "happy");
  EXPECT_EQ(parsed->shortest, 15);
  EXPECT_EQ(parsed->longest, 40);
  for (const char* bad :
       {"", "dog", "dog;happy", "dog;happy;15", "dog;happy;15-", "dog;happy;40-15",
        "dog;happy;x-40", ";happy;15-40", "dog;;15-40", "dog;happy;15-40x"}) {
    EXPECT_FALSE(ParseStoryGold(bad)) << bad;
  }
}

TEST(Story, WordsAreRunsOfLetters) {
  EXPECT_THAT(StoryWords("\"Tim's dog,\" She said: 3 cats-and"),
              ElementsAre("tim's", "dog", "she", "said", "cats", "and"));
}

// Prompts say what golds say; held-out orders are nobody's to learn from.
TEST(Story, ProblemsAreDisjointBySplit) {
  std::regex form("<s>Use ([a-z, ]+)\\. (Short|Long)\\. End with ([a-z]+)\\.\n");
  std::set<std::string> prompts[2];
  for (int heldout : {0, 1}) {
    auto source = Problems(std::string("{family: story, levels: [1, 3], split: ") +
                           (heldout ? "heldout}" : "train}"));
    for (int64_t i = 0; i < 400; ++i) {
      Problem problem = source->At(i);
      std::smatch said;
      ASSERT_TRUE(std::regex_match(problem.prompt, said, form)) << problem.prompt;
      auto order = ParseStoryGold(problem.answer);
      ASSERT_TRUE(order) << problem.answer;
      EXPECT_EQ("<s>" + StoryRequest(*order), problem.prompt);
      EXPECT_EQ(static_cast<int>(order->words.size()), problem.level);
      EXPECT_EQ(said[3], order->ending);
      EXPECT_EQ(problem.verifier, "story");
      prompts[heldout].insert(problem.prompt);
    }
  }
  EXPECT_GT(prompts[1].size(), 200u);
  for (const std::string& prompt : prompts[1]) EXPECT_EQ(prompts[0].count(prompt), 0u) << prompt;
}

TEST(Story, FreeStoriesBeginWithNothing) {
  auto source = Problems("{family: story, free: true, split: all}");
  EXPECT_EQ(source->At(5).prompt, "<s>");
  EXPECT_EQ(source->At(5).answer, "");
}

TEST(Story, HasNoTextsToLearnFrom) {
  EXPECT_THAT(MessageOf<ConfigError>([] { Examples("{family: story}"); }),
              HasSubstr("story has prompts"));
  EXPECT_THAT(MessageOf<ConfigError>([] { Preferences("{family: story}"); }),
              HasSubstr("story has prompts"));
}

// Whatever is found, the text fulfils it: counted here by hand, not by the rule.
TEST(Story, HindsightFindsWhatIsThere) {
  const std::string story =
      "Once upon a time, there was a little girl named Lily. She had a big dog and a red ball. One "
      "day, they went to the park. The dog ran in the sun, and mom was "
      "very happy. Then it began to";
  std::set<std::string> endings;
  for (uint64_t i = 0; i < 60; ++i) {
    Draws draws(RandomStream{7, i});
    int words = 1 + static_cast<int>(i % 3);
    auto found = OrderInHindsight(story, words, draws);
    ASSERT_TRUE(found);
    EXPECT_EQ(story.compare(0, found->text.size(), found->text), 0);
    EXPECT_TRUE(found->text.ends_with(found->order.ending + ".")) << found->text;
    EXPECT_EQ(static_cast<int>(found->order.words.size()), words);
    for (const std::string& word : found->order.words) {
      EXPECT_TRUE(
          std::regex_search(found->text, std::regex("\\b" + word + "\\b", std::regex::icase)))
          << word;
    }
    std::regex space("[^ ]+");
    auto count =
        std::distance(std::sregex_iterator(found->text.begin(), found->text.end(), space), {});
    EXPECT_GE(count, found->order.shortest);
    EXPECT_LE(count, found->order.longest);
    EXPECT_FALSE(IsHeldOut(StoryRequest(found->order)));
    endings.insert(found->order.ending);
  }
  EXPECT_THAT(endings, ElementsAre("happy", "park"));
  Draws draws(RandomStream{1});
  EXPECT_FALSE(OrderInHindsight("Too short a day.", 1, draws));
  EXPECT_FALSE(OrderInHindsight("", 1, draws));
}

}  // namespace
}  // namespace hone::data
