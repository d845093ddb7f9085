// Whether a story is what was ordered (data/families/story.h): each demand by degrees, so that a
// policy that fulfils none of them yet is told which way to go.
#pragma once

#include <string_view>

#include "data/families/story.h"
#include "rl/reward/verifier.h"

namespace hone::rl {

struct StoryJudgement {
  double words = 0;   // share of the ordered words that stand in it
  double length = 0;  // 1 within the ordered length, falling to 0 at half as short or twice as long
  double ending = 0;  // 1: the last word is the ordered one; ½: it stands in the last sentence
  bool kept() const { return words == 1 && length == 1 && ending == 1; }
};
StoryJudgement JudgeStory(std::string_view text, const data::StoryOrder& order);

// Sentences and nothing else: begins with a capital or a quotation mark, ends where a sentence
// does, and holds no token's name (<…>) and no line of an order.
bool IsStory(std::string_view text);

// The rule by itself: all demands of `gold` kept, in a story. Of "", which demands nothing, any
// text is right.
Verdict VerifyStory(std::string_view text, const std::string& gold);
// What a request whose verifier is "story" is worth beside that: format, and each demand.
void AddStoryRewards(const RewardRequest& request, std::map<std::string, double>* rewards);

}  // namespace hone::rl
