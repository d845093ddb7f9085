#include "data/bpe/pre_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/bpe/normalizer.h"
#include "data/bpe/regex.h"

namespace hone::data {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Cut(const PreTokenizer& pre_tokenizer, const std::string& text,
                             bool at_start = true) {
  Pieces pieces;
  pre_tokenizer.Split(text, at_start, &pieces);
  return {pieces.views.begin(), pieces.views.end()};
}
std::vector<std::string> Split(SplitBehavior behavior, bool invert = false) {
  return Cut(*MakeRegexSplit("-", behavior, invert, "test"), "the-final--countdown-");
}

TEST(PreTokenizer, EachBehaviourCutsItsOwnWay) {
  EXPECT_THAT(Split(SplitBehavior::kRemoved), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(Split(SplitBehavior::kIsolated),
              ElementsAre("the", "-", "final", "-", "-", "countdown", "-"));
  EXPECT_THAT(Split(SplitBehavior::kMergedWithPrevious),
              ElementsAre("the-", "final-", "-", "countdown-"));
  EXPECT_THAT(Split(SplitBehavior::kMergedWithNext),
              ElementsAre("the", "-final", "-", "-countdown", "-"));
  EXPECT_THAT(Split(SplitBehavior::kContiguous),
              ElementsAre("the", "-", "final", "--", "countdown", "-"));
  EXPECT_THAT(Split(SplitBehavior::kRemoved, true), ElementsAre("-", "-", "-", "-"));
}

TEST(PreTokenizer, ByteLevelIsGpt2s) {
  EXPECT_THAT(Cut(*MakeByteLevel(false, true), "I've  12 cats!\n\n x"),
              ElementsAre("I", "'ve", " ", " 12", " cats", "!", "\n\n", " x"));
  EXPECT_THAT(Cut(*MakeByteLevel(true, false), "a b"), ElementsAre(" a b"));
  EXPECT_THAT(Cut(*MakeByteLevel(true, false), " a"), ElementsAre(" a"));
}

TEST(PreTokenizer, StepsAfterTheByteLevelSeeItsLetters) {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  steps.push_back(MakeByteLevel(false, false));
  // A space is spelled Ġ there, and é as two letters.
  steps.push_back(MakeRegexSplit("Ġ|Ã", SplitBehavior::kIsolated, false, "test"));
  EXPECT_THAT(Cut(*MakeSequence(std::move(steps), 0), "a é"),
              ElementsAre("a", " ", "\xC3", "\xA9"));
}

TEST(PreTokenizer, MetaspacePrependsAsItsSchemeSays) {
  auto cut = [](PrependScheme scheme, const std::string& text, bool at_start) {
    return Cut(*MakeMetaspace("▁", scheme, true), text, at_start);
  };
  EXPECT_THAT(cut(PrependScheme::kAlways, "a b", false), ElementsAre("▁a", "▁b"));
  EXPECT_THAT(cut(PrependScheme::kFirst, "a b", false), ElementsAre("a", "▁b"));
  EXPECT_THAT(cut(PrependScheme::kFirst, "a b", true), ElementsAre("▁a", "▁b"));
  EXPECT_THAT(cut(PrependScheme::kNever, "a b", true), ElementsAre("a", "▁b"));
  EXPECT_THAT(cut(PrependScheme::kAlways, " a", true), ElementsAre("▁a"));
}

TEST(ByteAlphabet, SpellsEveryByteAndReadsItBack) {
  for (int b = 0; b < 256; ++b) {
    std::string bytes;
    ASSERT_TRUE(FromByteAlphabet(ByteAlphabet(static_cast<uint8_t>(b)), &bytes));
    EXPECT_EQ(bytes, std::string(1, static_cast<char>(b)));
  }
  EXPECT_EQ(ByteAlphabet(' '), "Ġ");
  EXPECT_EQ(ByteAlphabet('\n'), "Ċ");
  EXPECT_EQ(ByteAlphabet('a'), "a");
  std::string bytes;
  EXPECT_FALSE(FromByteAlphabet("가", &bytes));
}

TEST(Regex, SpaceIsUnicodesAndLinesEndAtLineFeeds) {
  std::vector<std::pair<size_t, size_t>> matches;
  Regex("\\s+", "test").FindAll("a\u3000\u00a0b\u180ec", &matches);
  EXPECT_THAT(matches, ElementsAre(std::pair(1, 6))) << "U+180E is no space";
  Regex("[^\\s]+", "test").FindAll("a b", &matches);
  EXPECT_THAT(matches, ElementsAre(std::pair(0, 1), std::pair(2, 3)));
  Regex("\\S+", "test").FindAll("\u180e b", &matches);
  EXPECT_THAT(matches, ElementsAre(std::pair(0, 3), std::pair(4, 5)));
  Regex("b$", "test").FindAll("ab\nb", &matches);
  EXPECT_THAT(matches, ElementsAre(std::pair(1, 2), std::pair(3, 4)));
  Regex(LiteralPattern("a.b|(c"), "test").FindAll("axb a.b|(c", &matches);
  EXPECT_THAT(matches, ElementsAre(std::pair(4, 10)));
}

TEST(Normalizer, FormsAndSteps) {
  EXPECT_EQ(MakeUnicodeNormalizer(UnicodeForm::kNfc)->Apply("e\u0301"), "é");
  EXPECT_EQ(MakeUnicodeNormalizer(UnicodeForm::kNfd)->Apply("é"), "e\u0301");
  EXPECT_EQ(MakeUnicodeNormalizer(UnicodeForm::kNfkc)->Apply("ﬁ①"), "fi1");
  EXPECT_EQ(MakeUnicodeNormalizer(UnicodeForm::kNfc)->Apply("ﬁ①"), "ﬁ①");
  EXPECT_EQ(MakeStrip(true, false)->Apply(" \u3000a "), "a ");
  EXPECT_EQ(MakeStrip(false, true)->Apply(" a \n"), " a");
  EXPECT_EQ(MakeStrip(true, true)->Apply("  "), "");
  EXPECT_EQ(MakeReplace(LiteralPattern(" "), "▁", "test")->Apply("a b "), "a▁b▁");
  EXPECT_EQ(MakePrepend("▁")->Apply(""), "");
  EXPECT_EQ(MakeLowercase()->Apply("ÄБ"), "äб");
}

}  // namespace
}  // namespace hone::data
