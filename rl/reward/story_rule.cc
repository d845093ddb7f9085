#include "rl/reward/story_rule.h"

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "data/text.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

bool Holds(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// Behind the last end of a sentence that more words follow.
std::string_view LastSentence(std::string_view text) {
  size_t last = text.find_last_not_of(" \t\r\n.!?\"'");
  if (last == std::string_view::npos) return {};
  size_t end = text.find_last_of(".!?", last);
  return end == std::string_view::npos ? text : text.substr(end + 1);
}

double LengthKept(double words, double shortest, double longest) {
  if (words < shortest) return std::max(0.0, 2 * words / shortest - 1);
  if (words > longest) return std::max(0.0, 2 - words / longest);
  return 1;
}

}  // namespace

StoryJudgement JudgeStory(std::string_view text, const data::StoryOrder& order) {
  const std::vector<std::string> words = data::StoryWords(text);
  StoryJudgement judged;
  for (const std::string& word : order.words) judged.words += Holds(words, word) ? 1 : 0;
  judged.words /= static_cast<double>(order.words.size());
  judged.length = LengthKept(static_cast<double>(words.size()), order.shortest, order.longest);
  if (!words.empty() && words.back() == order.ending) {
    judged.ending = 1;
  } else if (Holds(data::StoryWords(LastSentence(text)), order.ending)) {
    judged.ending = 0.5;
  }
  return judged;
}

bool IsStory(std::string_view text) {
  std::string_view story = data::Trim(text);
  if (story.empty() || story.find_first_of("<>") != std::string_view::npos) return false;
  if (story.find("End with ") != std::string_view::npos) return false;
  bool begins = std::isupper(static_cast<unsigned char>(story.front())) || story.front() == '"';
  std::string_view end = story.substr(0, story.find_last_not_of('"') + 1);
  return begins && !end.empty() && std::string_view(".!?").find(end.back()) != end.npos;
}

Verdict VerifyStory(std::string_view text, const std::string& gold) {
  if (gold.empty()) return {Outcome::kCorrect, 1, "nothing is ordered"};
  std::optional<data::StoryOrder> order = data::ParseStoryGold(gold);
  if (!order) return {Outcome::kUnparseable, 0, fmt::format("'{}' orders no story", gold)};
  StoryJudgement judged = JudgeStory(text, *order);
  bool right = judged.kept() && IsStory(text);
  return {right ? Outcome::kCorrect : Outcome::kWrong, right ? 1.0 : 0.0,
          fmt::format("words {:.2f}, length {:.2f}, ending {:.1f}", judged.words, judged.length,
                      judged.ending)};
}

void AddStoryRewards(const RewardRequest& request, std::map<std::string, double>* rewards) {
  bool well_formed = request.finished && IsStory(request.completion);
  (*rewards)["format"] = well_formed || request.gold.empty() ? 1 : 0;
  std::optional<data::StoryOrder> order = data::ParseStoryGold(request.gold);
  if (!order) return;
  StoryJudgement judged = JudgeStory(request.completion, *order);
  (*rewards)["story_words"] = judged.words;
  (*rewards)["story_length"] = judged.length;
  (*rewards)["story_ending"] = judged.ending;
}

}  // namespace hone::rl
