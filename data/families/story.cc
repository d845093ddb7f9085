#include "data/families/story.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "data/split.h"
#include "data/text.h"

namespace hone::data {
namespace {

constexpr std::string_view kBegin = "<s>";

// Things and doings of a small child's day, in words of one or a few tokens of a small vocabulary.
const std::vector<std::string>& Words() {
  static const std::vector<std::string> kWords = {
      "ball",   "big",    "bird", "boy",   "car",  "cat",   "dad",  "dog",
      "friend", "garden", "girl", "happy", "help", "house", "look", "mom",
      "park",   "play",   "red",  "room",  "sad",  "sun",   "toy",  "tree"};
  return kWords;
}
const std::vector<std::string>& Endings() {
  static const std::vector<std::string> kEndings = {"happy",   "day", "park",
                                                    "friends", "fun", "home"};
  return kEndings;
}

struct Length {
  std::string name;
  int shortest, longest;
};
const std::vector<Length>& Lengths() {
  static const std::vector<Length> kLengths = {{"Short", 15, 40}, {"Long", 50, 90}};
  return kLengths;
}

StoryOrder DrawOrder(Draws& draws, int words) {
  StoryOrder order;
  while (static_cast<int>(order.words.size()) < words) {
    const std::string& word = draws.Pick(Words());
    if (std::find(order.words.begin(), order.words.end(), word) == order.words.end()) {
      order.words.push_back(word);
    }
  }
  const Length& length = draws.Pick(Lengths());
  order.shortest = length.shortest;
  order.longest = length.longest;
  order.ending = draws.Pick(Endings());
  return order;
}

bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '\''; }

// Where the sentences of a text end, closing quotation marks included.
std::vector<size_t> SentenceEnds(std::string_view text) {
  std::vector<size_t> ends;
  for (size_t i = 0; i < text.size(); ++i) {
    if (std::string_view(".!?").find(text[i]) == std::string_view::npos) continue;
    while (i + 1 < text.size() && text[i + 1] == '"') ++i;
    if (i + 1 == text.size() || std::isspace(static_cast<unsigned char>(text[i + 1]))) {
      ends.push_back(i + 1);
    }
  }
  return ends;
}

class StoryFamily : public Family {
 public:
  explicit StoryFamily(bool free) : free_(free) {}
  std::string_view name() const override { return "story"; }
  int min_level() const override { return 1; }
  int max_level() const override { return 4; }
  std::string_view verifier() const override { return "story"; }
  std::string Prefix(const std::string&) const override { return std::string(kBegin); }
  bool solves() const override { return false; }

  Item Draw(Draws& draws, int level, const std::string&) const override {
    Item item;
    if (free_) return item;
    StoryOrder order = DrawOrder(draws, level);
    item.expression = StoryRequest(order);
    item.answer = StoryGold(order);
    return item;
  }
  std::string Fact(Draws&) const override { return ""; }

 private:
  bool free_;
};

}  // namespace

std::string StoryRequest(const StoryOrder& order) {
  std::string length = fmt::format("{} to {} words", order.shortest, order.longest);
  for (const Length& known : Lengths()) {
    if (known.shortest == order.shortest && known.longest == order.longest) length = known.name;
  }
  return fmt::format("Use {}. {}. End with {}.\n", Join(order.words, ", "), length, order.ending);
}

std::string StoryGold(const StoryOrder& order) {
  return fmt::format("{};{};{}-{}", Join(order.words, ","), order.ending, order.shortest,
                     order.longest);
}

std::optional<StoryOrder> ParseStoryGold(std::string_view gold) {
  size_t ending = gold.find(';');
  size_t length = ending == std::string_view::npos ? ending : gold.find(';', ending + 1);
  size_t dash = length == std::string_view::npos ? length : gold.find('-', length + 1);
  if (dash == std::string_view::npos) return std::nullopt;
  StoryOrder order;
  order.words = StoryWords(gold.substr(0, ending));
  order.ending = gold.substr(ending + 1, length - ending - 1);
  auto number = [&](size_t begin, size_t end, int* value) {
    auto [stop, error] = std::from_chars(gold.data() + begin, gold.data() + end, *value);
    return error == std::errc() && stop == gold.data() + end && *value > 0;
  };
  bool whole = number(length + 1, dash, &order.shortest) &&
               number(dash + 1, gold.size(), &order.longest) && !order.words.empty() &&
               !order.ending.empty() && order.shortest <= order.longest;
  return whole ? std::optional(order) : std::nullopt;
}

std::vector<std::string> StoryWords(std::string_view text) {
  std::vector<std::string> words;
  bool open = false;
  for (char c : text) {
    if (IsLetter(c)) {
      if (!open) words.emplace_back();
      words.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    open = IsLetter(c);
  }
  return words;
}

std::optional<OrderedStory> OrderInHindsight(std::string_view story, int words, Draws& draws) {
  auto listed = [](const std::vector<std::string>& list, const std::string& word) {
    return std::find(list.begin(), list.end(), word) != list.end();
  };
  std::vector<OrderedStory> possible;
  for (size_t end : SentenceEnds(story)) {
    OrderedStory candidate;
    candidate.text = story.substr(0, end);
    std::vector<std::string> all = StoryWords(candidate.text);
    if (all.empty() || !listed(Endings(), all.back())) continue;
    candidate.order.ending = all.back();
    std::sort(all.begin(), all.end());
    int count = static_cast<int>(all.size());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    std::erase_if(all, [&](const std::string& word) { return !listed(Words(), word); });
    if (static_cast<int>(all.size()) < words) continue;
    for (const Length& length : Lengths()) {
      if (count < length.shortest || count > length.longest) continue;
      candidate.order.shortest = length.shortest;
      candidate.order.longest = length.longest;
      candidate.order.words = all;
      possible.push_back(candidate);
    }
  }
  if (possible.empty()) return std::nullopt;
  for (int attempt = 0; attempt < 8; ++attempt) {
    OrderedStory chosen = draws.Pick(possible);
    std::vector<std::string>& pool = chosen.order.words;
    for (size_t i = 0; i < static_cast<size_t>(words); ++i) {  // the first draws of a shuffle
      std::swap(pool[i], pool[i + static_cast<size_t>(draws.Below(pool.size() - i))]);
    }
    pool.resize(static_cast<size_t>(words));
    if (InSplit(StoryRequest(chosen.order), Split::kTrain)) return chosen;
  }
  return std::nullopt;
}

std::unique_ptr<Family> MakeStoryFamily(bool free) { return std::make_unique<StoryFamily>(free); }

}  // namespace hone::data
