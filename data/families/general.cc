#include <algorithm>

#include "data/families/family.h"

namespace hone::data {
namespace {

// The words of one language.
struct Phrases {
  std::string prefix, repeat, reverse, welcome, polite, careless;
};
const Phrases& PhrasesOf(const std::string& language) {
  static const Phrases kEnglish = {"G:", "say ", "back ", "meet ", "welcome ", "hi "};
  static const Phrases kKorean = {"말:", "따라 ", "거꾸로 ", "인사 ", "환영 ", "야 "};
  static const Phrases kChinese = {"说:", "复述 ", "倒过来 ", "问候 ", "欢迎 ", "喂 "};
  return language == "ko" ? kKorean : language == "zh" ? kChinese : kEnglish;
}

std::string Digits(Draws& draws, int count) {
  std::string digits;
  for (int i = 0; i < count; ++i) digits += static_cast<char>('0' + draws.Range(0, 9));
  return digits;
}
// Two or three syllables of a consonant and a vowel.
std::string Name(Draws& draws) {
  static constexpr std::string_view kConsonants = "bdfgklmnprst", kVowels = "aeiou";
  std::string name;
  for (int syllables = draws.Range(2, 3); syllables > 0; --syllables) {
    name += kConsonants[draws.Below(kConsonants.size())];
    name += kVowels[draws.Below(kVowels.size())];
  }
  return name;
}

class GeneralFamily : public Family {
 public:
  explicit GeneralFamily(std::vector<std::string> tasks) : tasks_(std::move(tasks)) {}

  std::string_view name() const override { return "general"; }
  int min_level() const override { return 1; }
  int max_level() const override { return 9; }
  std::string_view verifier() const override { return "contains"; }
  std::string_view kind() const override { return "general"; }
  std::string Prefix(const std::string& language) const override {
    return PhrasesOf(language).prefix;
  }

  Item Draw(Draws& draws, int level, const std::string& language) const override {
    const Phrases& phrases = PhrasesOf(language);
    const std::string& task = draws.Pick(tasks_);
    if (task == "welcome") return Welcome(phrases, Name(draws));
    return Recite(phrases, Digits(draws, level), task == "reverse");
  }
  std::string Fact(Draws& draws) const override { return Digits(draws, 1); }

 private:
  static Item Welcome(const Phrases& phrases, const std::string& name) {
    Item item;
    item.expression = phrases.welcome + name + '=';
    item.answer = phrases.polite + name;
    item.careless_answer = phrases.careless + name;
    item.steps = [](const std::vector<bool>&) { return std::vector<std::string>{}; };
    return item;
  }
  static Item Recite(const Phrases& phrases, const std::string& digits, bool reverse) {
    Item item;
    item.expression = (reverse ? phrases.reverse : phrases.repeat) + digits + '=';
    item.answer = digits;
    if (reverse) std::reverse(item.answer.begin(), item.answer.end());
    item.joints = static_cast<int>(digits.size()) - 1;
    item.steps = [answer = item.answer](const std::vector<bool>& merged) {
      std::vector<std::string> steps = {""};
      for (size_t i = 0; i < answer.size(); ++i) {
        steps.back() += answer[i];
        if (i < merged.size() && !merged[i]) steps.emplace_back();
      }
      return steps;
    };
    return item;
  }

  std::vector<std::string> tasks_;
};

}  // namespace

std::unique_ptr<Family> MakeGeneralFamily(std::vector<std::string> tasks) {
  return std::make_unique<GeneralFamily>(std::move(tasks));
}

const std::vector<std::string>& GeneralTaskNames() {
  static const std::vector<std::string> kNames = {"repeat", "reverse", "welcome"};
  return kNames;
}

}  // namespace hone::data
