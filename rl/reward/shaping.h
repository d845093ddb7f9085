// Rewards for the shape of a completion, each as open-r1 (github.com/huggingface/open-r1,
// src/open_r1/rewards.py) defined it for its recipes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hone::rl {

// −(1 − distinct / all) over the runs of `n` words, lower-cased, in [−1, 0]; 0 for fewer than `n`
// words. A Han or kana character is a word.
double RepetitionPenalty(std::string_view text, int n);

// From 1 (no tokens) to 0.5 (at the limit) along half a cosine when correct, from −1 to −0.5 when
// not: short where right, long where wrong.                      [2502.03373 §3, constants
// open-r1's]
double CosineLength(bool correct, int64_t tokens, int64_t limit);

// How often `what` stands in the text.
size_t Count(std::string_view text, std::string_view what);

// A quarter for each of <think> </think> <answer> </answer> that stands there exactly once.
double TagCount(std::string_view text);

// A third for each mark of a step ("Step 1:", a numbered or bulleted line, "First,", "Second,",
// "Next,", "Finally,"), at most 1.
double ReasoningSteps(std::string_view text);

}  // namespace hone::rl
