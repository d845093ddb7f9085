#include <gtest/gtest.h>

#include "data/tokenizer.h"
#include "data/utf8.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

TEST(ByteTokenizer, BytesAreTheirOwnIdsAndTagsAreOneToken) {
  auto tokenizer = MakeByteTokenizer();
  EXPECT_EQ(tokenizer->vocab_size(), 263);
  EXPECT_EQ(tokenizer->Encode("aé"), (std::vector<int32_t>{'a', 0xC3, 0xA9}));
  EXPECT_EQ(tokenizer->Encode("<think>so </think><answer>6</answer>"),
            (std::vector<int32_t>{259, 's', 'o', ' ', 260, 261, '6', 262}));
  EXPECT_EQ(tokenizer->bos_id(), 256);
  EXPECT_EQ(tokenizer->eos_id(), 257);
  EXPECT_EQ(tokenizer->SpecialId("<|pad|>"), 258);
  EXPECT_EQ(tokenizer->SpecialId("<nothing>"), -1);
}

TEST(ByteTokenizer, SpecialTokensStayTextWhenNotParsed) {
  auto tokenizer = MakeByteTokenizer();
  EXPECT_EQ(tokenizer->Encode("<think>", false).size(), 7u);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("<think>", false)), "<think>");
}

TEST(ByteTokenizer, LongestSpecialTokenWins) {
  auto tokenizer = MakeByteTokenizer({"<a>", "<a><b>", "<think>"});
  EXPECT_EQ(tokenizer->vocab_size(), 265) << "a special token that exists is not added again";
  EXPECT_EQ(tokenizer->Encode("<a><b><a>"), (std::vector<int32_t>{264, 263}));
}

TEST(ByteTokenizer, DecodeGivesTheBytesBack) {
  auto tokenizer = MakeByteTokenizer();
  std::string text;
  for (int i = 0; i < 256; ++i) text += static_cast<char>(i);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  EXPECT_EQ(tokenizer->Decode({'a', 257, 'b'}, true), "ab");
  EXPECT_EQ(tokenizer->Decode({'a', 257, 'b'}), "a<|eos|>b");
  EXPECT_THROW(tokenizer->Decode({263}), DataError);
  EXPECT_THROW(tokenizer->Decode({-1}), DataError);
}

TEST(ByteTokenizer, DigestTellsVocabulariesApart) {
  EXPECT_EQ(MakeByteTokenizer()->Digest(), LoadTokenizer("byte")->Digest());
  EXPECT_NE(MakeByteTokenizer({"<x>"})->Digest(), MakeByteTokenizer({"<y>"})->Digest());
}

// What a stream of ids reads as when pushed one by one.
std::vector<std::string> Stream(const std::string& bytes, std::string* rest) {
  auto tokenizer = MakeByteTokenizer();
  IncrementalDecoder decoder(*tokenizer);
  std::vector<std::string> pieces;
  for (char byte : bytes) pieces.push_back(decoder.Push(static_cast<uint8_t>(byte)));
  *rest = decoder.Flush();
  return pieces;
}

TEST(IncrementalDecoder, NeverSplitsACharacter) {
  std::string rest;
  EXPECT_EQ(Stream("a즉😀", &rest), (std::vector<std::string>{"a", "", "", "즉", "", "", "", "😀"}));
  EXPECT_EQ(rest, "");
}

TEST(IncrementalDecoder, BadBytesBecomeReplacementCharacters) {
  std::string rest;
  // A lone continuation byte; a cut three-byte character; a surrogate (three bad bytes); a cut end.
  auto pieces = Stream("\x80z\xE3\x81z\xED\xA0\x80\xF0\x9F", &rest);
  std::string all;
  for (const auto& piece : pieces) {
    EXPECT_TRUE(IsValidUtf8(piece));
    all += piece;
  }
  EXPECT_EQ(all, "\uFFFDz\uFFFDz\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(rest, "\uFFFD");
}

TEST(IncrementalDecoder, SkipsSpecialTokensOnRequest) {
  auto tokenizer = MakeByteTokenizer();
  IncrementalDecoder skipping(*tokenizer, true), showing(*tokenizer);
  EXPECT_EQ(skipping.Push(259), "");
  EXPECT_EQ(showing.Push(259), "<think>");
}

TEST(Utf8, AgreesWithItselfOverAllCodes) {
  for (uint32_t code = 0; code <= 0x10FFFF; ++code) {
    std::string bytes;
    AppendUtf8(code, &bytes);
    Utf8Step step = NextUtf8(bytes);
    bool surrogate = code >= 0xD800 && code < 0xE000;
    ASSERT_EQ(step.kind == Utf8Step::Kind::kCharacter, !surrogate) << code;
    if (!surrogate) {
      ASSERT_EQ(step.code, code);
      ASSERT_EQ(step.length, bytes.size());
    }
  }
  EXPECT_FALSE(IsValidUtf8("\xC0\x80")) << "overlong";
  EXPECT_FALSE(IsValidUtf8("\xF4\x90\x80\x80")) << "above U+10FFFF";
}

}  // namespace
}  // namespace hone::data
