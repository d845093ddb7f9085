// Whether a story is what was ordered, by degrees. Values by hand.
#include "rl/reward/story_rule.h"

#include <gtest/gtest.h>

namespace hone::rl {
namespace {

const data::StoryOrder kOrder{{"dog", "ball"}, "happy", 6, 12};

TEST(StoryRule, EachDemandByDegrees) {
  // nine words
  StoryJudgement all = JudgeStory("The Dog had a ball. They were so happy.", kOrder);
  EXPECT_EQ(all.words, 1);
  EXPECT_EQ(all.length, 1);
  EXPECT_EQ(all.ending, 1);
  EXPECT_TRUE(all.kept());
  // "dogs" is another word; happy stands in the last sentence, but not last
  StoryJudgement some = JudgeStory("The dogs had a ball. They were happy now.", kOrder);
  EXPECT_EQ(some.words, 0.5);
  EXPECT_EQ(some.ending, 0.5);
  EXPECT_FALSE(some.kept());
  EXPECT_EQ(JudgeStory("They were happy. The dog had a ball.", kOrder).ending, 0);
  EXPECT_EQ(JudgeStory("He said, \"I am happy!\"", kOrder).ending, 1);
}

TEST(StoryRule, LengthFallsOffOnBothSides) {
  auto length = [](int words) {
    std::string text;
    for (int i = 0; i < words; ++i) text += "a ";
    return JudgeStory(text, kOrder).length;
  };
  EXPECT_EQ(length(6), 1);
  EXPECT_EQ(length(12), 1);
  EXPECT_NEAR(length(5), 2.0 / 3, 1e-12);
  EXPECT_EQ(length(3), 0);
  EXPECT_EQ(length(0), 0);
  EXPECT_NEAR(length(15), 0.75, 1e-12);
  EXPECT_EQ(length(24), 0);
}

TEST(StoryRule, WhatIsAStory) {
  for (const char* good : {"A dog.", " \"Hi!\" he said.", "He said, \"Hi!\"", "Why?\n"}) {
    EXPECT_TRUE(IsStory(good)) << good;
  }
  for (const char* bad : {"", "   ", "a dog.", "A dog", "\"", "<s>A dog.", "A </s> dog.",
                          "Use dog. Short. End with dog."}) {
    EXPECT_FALSE(IsStory(bad)) << bad;
  }
}

TEST(StoryRule, AsARequest) {
  RewardRequest request;
  request.completion = " The dog had a ball. They were so happy.";
  request.verifier = "story";
  request.gold = data::StoryGold(kOrder);
  RewardReply reply = ScoreCompletion(request);
  EXPECT_EQ(reply.outcome, Outcome::kCorrect);
  for (const char* part : {"accuracy", "format", "story_words", "story_length", "story_ending"}) {
    EXPECT_EQ(reply.rewards.at(part), 1) << part;
  }
  request.finished = false;
  EXPECT_EQ(ScoreCompletion(request).rewards.at("format"), 0);
  request.finished = true;
  request.completion = " The dog had fun. They were so happy.";
  reply = ScoreCompletion(request);
  EXPECT_EQ(reply.outcome, Outcome::kWrong);
  EXPECT_EQ(reply.rewards.at("story_words"), 0.5);
  // Nothing is ordered: anything will do.
  request.gold = "";
  request.completion = "One day, a";
  EXPECT_EQ(ScoreCompletion(request).outcome, Outcome::kCorrect);
  EXPECT_EQ(ScoreCompletion(request).rewards.at("format"), 1);
  request.gold = "an order that nobody can read";
  EXPECT_EQ(ScoreCompletion(request).outcome, Outcome::kUnparseable);
}

}  // namespace
}  // namespace hone::rl
