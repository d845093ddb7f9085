#include <fmt/format.h>

#include <algorithm>

#include "data/families/family.h"
#include "data/families/story.h"
#include "data/split.h"
#include "data/text.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

constexpr int kAttempts = 10'000;  // at a problem of the wanted split

// What both kinds of generated source read from the config.
struct GeneratorOptions {
  std::shared_ptr<const Family> family;
  std::vector<std::string> languages = GeneratedLanguages();
  int low = 0, high = 0;  // levels
  Split split = Split::kTrain;
  int64_t count = -1;
  uint64_t seed = 0;

  void Read(ConfigReader& config, uint64_t run_seed) {
    ReadFamily(config);
    ReadLanguages(config);
    split = ReadSplit(config, Split::kTrain);
    config.Optional("count", &count);
    if (config.Has("count") && count < 1) config.Fail("count", "must be at least 1");
    int64_t own_seed = static_cast<int64_t>(run_seed);
    config.Optional("seed", &own_seed);
    seed = static_cast<uint64_t>(own_seed);
  }

 private:
  void ReadFamily(ConfigReader& config) {
    switch (config.OneOf("family", FamilyNames(), 0)) {
      case 0:
        family = MakeChainFamily();
        break;
      case 1:
        family = MakeArithmeticFamily();
        break;
      case 2:
        family = MakeLogicFamily();
        break;
      case 3:
        family = MakeGeneralFamily(ReadTasks(config));
        break;
      default:
        ReadStory(config);
    }
    std::vector<int64_t> levels = {std::max(2, family->min_level()),
                                   std::min(5, family->max_level())};
    config.Optional("levels", &levels);
    if (levels.size() != 2 || levels[0] > levels[1] || levels[0] < family->min_level() ||
        levels[1] > family->max_level()) {
      config.Fail("levels", fmt::format("wants [lowest, highest] within {}…{} for family {}",
                                        family->min_level(), family->max_level(), family->name()));
    }
    low = static_cast<int>(levels[0]);
    high = static_cast<int>(levels[1]);
  }
  void ReadStory(ConfigReader& config) {
    bool free = false;
    config.Optional("free", &free);
    family = MakeStoryFamily(free);
    languages = {"en"};
  }
  static std::vector<std::string> ReadTasks(ConfigReader& config) {
    std::vector<std::string> tasks = GeneralTaskNames();
    config.Optional("tasks", &tasks);
    CheckWords(config, "tasks", tasks, GeneralTaskNames());
    return tasks;
  }
  void ReadLanguages(ConfigReader& config) {
    const std::vector<std::string> known = languages;  // of the family
    config.Optional("languages", &languages);
    CheckWords(config, "languages", languages, known);
  }
  static void CheckWords(ConfigReader& config, const std::string& key,
                         const std::vector<std::string>& words,
                         const std::vector<std::string>& known) {
    if (words.empty()) config.Fail(key, "is empty");
    for (const std::string& word : words) {
      if (std::find(known.begin(), known.end(), word) != known.end()) continue;
      config.Fail(key, fmt::format("'{}' is none of: {}", word, Join(known, ", ")));
    }
  }
};

// An item of the wanted split, and the language it is put in.
struct Drawn {
  Item item;
  std::string language;
  int level;
};
Drawn DrawItem(const GeneratorOptions& options, Draws& draws) {
  std::string language = draws.Pick(options.languages);
  int level = draws.Range(options.low, options.high);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    Item item = options.family->Draw(draws, level, language);
    if (InSplit(item.expression, options.split)) return {std::move(item), language, level};
  }
  throw DataError(fmt::format("[data] family {} has no problem of level {} in that split",
                              options.family->name(), level));
}

class GeneratedProblems : public ProblemSource {
 public:
  explicit GeneratedProblems(GeneratorOptions options) : options_(std::move(options)) {}
  int64_t size() const override { return options_.count; }
  Problem At(int64_t index) const override {
    Draws draws(
        RandomStream({HashName("problem"), options_.seed, HashName(options_.family->name()),
                      static_cast<uint64_t>(options_.split), static_cast<uint64_t>(index)}));
    Drawn drawn = DrawItem(options_, draws);
    Problem problem;
    problem.id = fmt::format("{}/{}/{:016x}", options_.family->name(), drawn.language,
                             HashName(drawn.item.expression));
    problem.prompt = options_.family->Prefix(drawn.language) + drawn.item.expression;
    problem.answer = drawn.item.answer;
    problem.verifier = options_.family->verifier();
    problem.language = drawn.language;
    problem.kind = options_.family->kind();
    problem.level = drawn.level;
    return problem;
  }

 private:
  GeneratorOptions options_;
};

enum class TextKind { kAnswer, kAnswerTag, kEmptyThink, kThinking, kDrill };

struct TextOptions {
  TextKind kind = TextKind::kThinking;
  double fine = 1, merge = 0.6, mixed_language = 0, language_match = 1, bad_format = 0, careful = 1;
  int64_t facts = 8;

  void Read(ConfigReader& config, bool general) {
    kind = static_cast<TextKind>(
        config.OneOf("text", {"answer", "answer_tag", "empty_think", "thinking", "drill"},
                     static_cast<int>(kind)));
    if (kind == TextKind::kThinking) {
      Share(config, "fine", &fine);
      Share(config, "merge", &merge);
      Share(config, "language_match", &language_match);
    }
    if (kind == TextKind::kThinking || kind == TextKind::kEmptyThink) {
      Share(config, "bad_format", &bad_format);
    }
    if (kind == TextKind::kThinking || kind == TextKind::kDrill) {
      mixed_language = kind == TextKind::kDrill ? 1 : 0;
      Share(config, "mixed_language", &mixed_language);
    }
    if (kind == TextKind::kDrill) {
      config.Optional("facts", &facts);
      if (facts < 1) config.Fail("facts", "must be at least 1");
    }
    if (general) Share(config, "careful", &careful);
  }

 private:
  static void Share(ConfigReader& config, const char* key, double* value) {
    config.Optional(key, value);
    if (!(*value >= 0 && *value <= 1)) config.Fail(key, "is a share: between 0 and 1");
  }
};

class GeneratedExamples : public ExampleSource {
 public:
  GeneratedExamples(GeneratorOptions options, TextOptions text)
      : options_(std::move(options)), text_(text) {}
  int64_t size() const override { return options_.count; }

  Example At(int64_t index) const override {
    Draws draws(RandomStream({HashName("example"), options_.seed, HashName(options_.family->name()),
                              static_cast<uint64_t>(options_.split),
                              static_cast<uint64_t>(text_.kind), static_cast<uint64_t>(index)}));
    if (text_.kind == TextKind::kDrill) return {"", Drill(draws)};
    Drawn drawn = DrawItem(options_, draws);
    return {options_.family->Prefix(drawn.language) + drawn.item.expression,
            Completion(drawn, draws)};
  }

 private:
  std::string Drill(Draws& draws) const {
    std::vector<std::string> facts;
    for (int64_t i = 0; i < text_.facts; ++i) facts.push_back(options_.family->Fact(draws));
    return Spell(facts, draws.Pick(options_.languages), draws);
  }

  std::string Completion(const Drawn& drawn, Draws& draws) const {
    const Item& item = drawn.item;
    bool careless = !item.careless_answer.empty() && !draws.Chance(text_.careful);
    const std::string& answer = careless ? item.careless_answer : item.answer;
    if (text_.kind == TextKind::kAnswer) return answer;
    if (text_.kind == TextKind::kAnswerTag) return "<answer>" + answer + "</answer>";
    std::string thinking = text_.kind == TextKind::kThinking ? Thinking(drawn, draws) : "";
    bool bad = draws.Chance(text_.bad_format), unclosed = draws.Chance(0.5);
    return "<think>" + thinking + (bad && unclosed ? "" : "</think>") +
           (bad && !unclosed ? "" : "<answer>") + answer + "</answer>";
  }

  std::string Thinking(const Drawn& drawn, Draws& draws) const {
    std::vector<bool> merged(static_cast<size_t>(drawn.item.joints), false);
    if (!draws.Chance(text_.fine) && !merged.empty()) {
      for (size_t i = 0; i < merged.size(); ++i) merged[i] = draws.Chance(text_.merge);
      // Coarse means that at least one joint is merged.
      merged[static_cast<size_t>(draws.Below(merged.size()))] = true;
    }
    std::string language =
        draws.Chance(text_.language_match) ? drawn.language : draws.Pick(options_.languages);
    return Spell(drawn.item.steps(merged), language, draws);
  }

  // "so STEP;so STEP;": one language, or in a mixed text one drawn for each step.
  std::string Spell(const std::vector<std::string>& steps, const std::string& language,
                    Draws& draws) const {
    bool mixed = draws.Chance(text_.mixed_language);
    std::string out;
    for (const std::string& step : steps) {
      out += StepWord(mixed ? draws.Pick(options_.languages) : language) + step + ';';
    }
    return out;
  }

  GeneratorOptions options_;
  TextOptions text_;
};

// One digit of the answer changed.
std::string WrongAnswer(const std::string& answer, Draws& draws) {
  std::string wrong = answer;
  char& digit = wrong[static_cast<size_t>(draws.Below(wrong.size()))];
  bool bit = answer == "0" || answer == "1";
  digit = static_cast<char>('0' + (bit ? '1' - digit : (digit - '0' + draws.Range(1, 9)) % 10));
  return wrong;
}

class GeneratedPreferences : public PreferenceSource {
 public:
  GeneratedPreferences(GeneratorOptions options, bool pairwise)
      : options_(std::move(options)), pairwise_(pairwise) {}
  int64_t size() const override { return options_.count; }
  Preference At(int64_t index) const override {
    Draws draws(
        RandomStream({HashName("preference"), options_.seed, HashName(options_.family->name()),
                      static_cast<uint64_t>(options_.split), static_cast<uint64_t>(index)}));
    Drawn drawn = DrawItem(options_, draws);
    const Item& item = drawn.item;
    auto spell = [](const std::string& answer) {
      return "<think></think><answer>" + answer + "</answer>";
    };
    std::string worse =
        item.careless_answer.empty() ? WrongAnswer(item.answer, draws) : item.careless_answer;
    Preference preference{options_.family->Prefix(drawn.language) + item.expression,
                          spell(item.answer), spell(worse)};
    if (!pairwise_) (draws.Chance(0.5) ? preference.chosen : preference.rejected).clear();
    return preference;
  }

 private:
  GeneratorOptions options_;
  bool pairwise_;
};

void NeedsSolutions(const ConfigReader& config, const GeneratorOptions& options) {
  if (options.family->solves()) return;
  config.Fail("family",
              fmt::format("{} has prompts, but no texts that answer them", options.family->name()));
}

}  // namespace

std::string Family::Prefix(const std::string& language) const {
  return language == "ko" ? "문:" : language == "zh" ? "问:" : "Q:";
}

std::string StepWord(const std::string& language) {
  return language == "ko" ? "즉" : language == "zh" ? "故" : "so ";
}

const std::vector<std::string>& FamilyNames() {
  static const std::vector<std::string> kNames = {"chain", "arithmetic", "logic", "general",
                                                  "story"};
  return kNames;
}
const std::vector<std::string>& GeneratedLanguages() {
  static const std::vector<std::string> kLanguages = {"en", "ko", "zh"};
  return kLanguages;
}

std::unique_ptr<ProblemSource> MakeGeneratedProblems(ConfigReader& config, uint64_t seed) {
  GeneratorOptions options;
  options.Read(config, seed);
  return std::make_unique<GeneratedProblems>(std::move(options));
}

std::unique_ptr<ExampleSource> MakeGeneratedExamples(ConfigReader& config, uint64_t seed) {
  GeneratorOptions options;
  options.Read(config, seed);
  NeedsSolutions(config, options);
  TextOptions text;
  text.Read(config, options.family->kind() == "general");
  return std::make_unique<GeneratedExamples>(std::move(options), text);
}

std::unique_ptr<PreferenceSource> MakeGeneratedPreferences(ConfigReader& config, uint64_t seed) {
  GeneratorOptions options;
  options.Read(config, seed);
  NeedsSolutions(config, options);
  bool pairwise = config.OneOf("preference", {"pairwise", "pointwise"}, 0) == 0;
  return std::make_unique<GeneratedPreferences>(std::move(options), pairwise);
}

}  // namespace hone::data
