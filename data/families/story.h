// Small stories to order: which words a story has to contain, how long it is, and with which word
// it ends. What is asked for is a prompt; whether it was kept is a rule (rl/reward/story_rule.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/families/family.h"

namespace hone::data {

struct StoryOrder {
  std::vector<std::string> words;  // each stands in the story, whole and in any case
  std::string ending;              // its last word
  int shortest = 0, longest = 0;   // in words, both included
};

// The prompt's text: "Use dog, ball. Short. End with happy.\n"
std::string StoryRequest(const StoryOrder& order);
// An order as a problem's answer, and back: "dog,ball;happy;15-40". nullopt for anything else.
std::string StoryGold(const StoryOrder& order);
std::optional<StoryOrder> ParseStoryGold(std::string_view gold);

// The words of a text in lower case: runs of letters and apostrophes.
std::vector<std::string> StoryWords(std::string_view text);

// An order that the beginning of `story`, up to the end of one of its sentences, fulfils, and that
// beginning. nullopt when there is none, or only held-out ones were drawn.
struct OrderedStory {
  StoryOrder order;
  std::string text;
};
std::optional<OrderedStory> OrderInHindsight(std::string_view story, int words, Draws& draws);

// Prompts are orders of `level` words (1–4), behind the beginning-of-text token <s>. With `free`,
// nothing is ordered and the prompt is <s> alone: how a base model is asked for any story.
std::unique_ptr<Family> MakeStoryFamily(bool free);

}  // namespace hone::data
