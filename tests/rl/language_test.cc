// The share of a text's words in a language: by hand, and on labelled text.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "rl/reward/verifier.h"
#include "runtime/error.h"
#include "tests/read_json.h"

namespace hone::rl {
namespace {

using nlohmann::json;

TEST(LanguageShare, CountsWordsByScript) {
  EXPECT_EQ(LanguageShare("Let us add the numbers.", "en"), 1.0);
  EXPECT_EQ(LanguageShare("Let us add 我们", "en"), 3.0 / 5);  // a Han character is a word
  EXPECT_EQ(LanguageShare("Let us add 我们", "zh"), 2.0 / 5);
  EXPECT_EQ(LanguageShare("두 수를 더한다 so easy", "ko"), 3.0 / 5);
  EXPECT_EQ(LanguageShare("数を足す", "ja"), 1.0);
  EXPECT_EQ(LanguageShare("数を足す", "zh"), 0.0);
  EXPECT_EQ(LanguageShare("Сложим два числа now", "en"), 1.0 / 4);
  EXPECT_EQ(LanguageShare("señor naïve yes", "en"), 1.0 / 3);
}

TEST(LanguageShare, MathematicsIsNoWord) {
  EXPECT_EQ(LanguageShare("所以 x = \\frac{1}{2} \\cdot y + 12", "zh"), 1.0);
  EXPECT_EQ(LanguageShare("3 + 4 = 7, 2π", "ko"), 1.0);
  EXPECT_EQ(LanguageShare("", "en"), 1.0);
  EXPECT_EQ(LanguageShare("→ ≤ ∑ 😀 （）。「」", "en"), 1.0);
}

// Kanji are told from Chinese by the kana of their sentence, so one の moves one sentence.
TEST(LanguageShare, KanjiAndHanziBySentence) {
  EXPECT_EQ(LanguageShare("我们先算两个数。优衣の库很大。", "zh"), 7.0 / 13);
  EXPECT_EQ(LanguageShare("我们先算两个数。优衣の库很大。", "ja"), 6.0 / 13);
  EXPECT_EQ(LanguageShare("東京大学。ここはとても大きいです。", "ja"), 1.0);
}

TEST(LanguageShare, BearsInvalidText) {
  EXPECT_EQ(LanguageShare("\xff\xfe\xe4hello there\xe4\xb8", "en"), 1.0);
  EXPECT_EQ(LanguageShare(std::string("\xe6\x88", 2), "zh"), 1.0);
  EXPECT_THROW(LanguageShare("text", "fr"), ConfigError);
}

class Labelled : public testing::Test {
 protected:
  void SetUp() override {
    const char* root = std::getenv("HONE_DATA");
    root_ = root ? root : "";
    std::ifstream file(root_ + "/lang/lingua_testdata_open.jsonl");
    if (!root || !file) GTEST_SKIP() << "set HONE_DATA to the folder of the data sets to run this";
  }
  // Adds one text of `language`.
  void Add(const std::string& text, const std::string& language) {
    auto& mean = mean_[language];
    ++mean.second;
    for (const std::string& l : LanguageNames()) mean.first[l] += LanguageShare(text, l);
  }
  double Mean(const std::string& language, const std::string& of) {
    auto& mean = mean_.at(language);
    return mean.first.at(of) / mean.second;
  }
  std::string root_;
  std::map<std::string, std::pair<std::map<std::string, double>, int>> mean_;
};

TEST_F(Labelled, Sentences) {
  std::ifstream lingua(root_ + "/lang/lingua_testdata_open.jsonl");
  for (std::string line; std::getline(lingua, line);) {
    json row = ParseJson(line);
    if (row["kind"] == "sentence") Add(row["text"], row["lang"]);
  }
  std::ifstream parallel(root_ + "/lang/ud_pud_parallel_open.jsonl");
  for (std::string line; std::getline(parallel, line);) {
    json row = ParseJson(line);
    for (const char* l : {"en", "ko", "zh"}) Add(row[l], l);
  }
  for (const std::string& own : LanguageNames()) {
    EXPECT_GE(Mean(own, own), 0.98) << own;
    for (const std::string& other : LanguageNames()) {
      if (other != own) {
        EXPECT_LE(Mean(own, other), 0.02) << other << " of " << own;
      }
    }
  }
  for (const std::string& l : LanguageNames()) EXPECT_LE(Mean("ru", l), 0.01) << l;
  EXPECT_LE(Mean("vi", "en"), 0.2);
}

// One text of each of 69 languages: only Latin ones may pass for English, none for the others.
TEST_F(Labelled, OtherLanguagesAreNone) {
  json texts = ReadJson(root_ + "/lang/whatlang_examples.json");
  for (auto& [language, text] : texts.items()) {
    if (language != "cmn") {
      EXPECT_LE(LanguageShare(text.get<std::string>(), "zh"), 0.01) << language;
    }
    if (language != "jpn") {
      EXPECT_LE(LanguageShare(text.get<std::string>(), "ja"), 0.01) << language;
    }
    if (language != "kor") {
      EXPECT_LE(LanguageShare(text.get<std::string>(), "ko"), 0.01) << language;
    }
  }
  EXPECT_EQ(LanguageShare(texts["eng"].get<std::string>(), "en"), 1.0);
  for (const char* l : {"rus", "ara", "hin", "heb", "tha", "ell", "kat"}) {
    EXPECT_LE(LanguageShare(texts[l].get<std::string>(), "en"), 0.05) << l;
  }
}

}  // namespace
}  // namespace hone::rl
