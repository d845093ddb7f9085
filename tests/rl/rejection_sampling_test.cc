// Why a sample is dropped, one reason at a time.
#include "rl/stages/rejection_sampling.h"

#include <gtest/gtest.h>

namespace hone::rl {
namespace {

Sample Right(const std::string& text) {
  Sample sample;
  sample.outcome = Outcome::kCorrect;
  sample.rewards = {{"accuracy", 1}, {"format", 1}, {"language", 1}};
  sample.text = text;
  return sample;
}

TEST(ReasonToDrop, IsTheFirstThatHolds) {
  RejectionConfig config;
  config.max_paragraph = 10;
  auto reason = [&](Sample sample, auto change) {
    change(&sample);
    return ReasonToDrop(sample, config);
  };
  auto of_text = [&](const std::string& text) { return ReasonToDrop(Right(text), config); };
  EXPECT_EQ(of_text("답 𝄞"), "");
  EXPECT_EQ(of_text("1234567890\n\n1234567890"), "");
  EXPECT_EQ(of_text("12345678901"), "long_paragraph");
  EXPECT_EQ(of_text("a ``` b"), "code_block");
  // Cut, overlong, a half of a pair of surrogates, beyond the last code point.
  for (const char* text : {"\xEB\x8B", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "a\xFF"}) {
    EXPECT_EQ(of_text(text), "invalid_utf8") << text;
  }
  const Sample right = Right("a");
  EXPECT_EQ(reason(right, [](Sample* s) { s->outcome = Outcome::kTimeout; }), "timeout");
  EXPECT_EQ(reason(right, [](Sample* s) { s->rewards["format"] = 0; }), "format");
  EXPECT_EQ(reason(right, [](Sample* s) { s->rewards["language"] = 0.9; }), "mixed_language");
  EXPECT_EQ(reason(right, [](Sample* s) { s->finish = FinishReason::kLength; }), "unfinished");
  config.keep_unfinished = true;
  EXPECT_EQ(reason(right, [](Sample* s) { s->finish = FinishReason::kLength; }), "");
  config.drop_mixed_language = config.drop_code_blocks = false;
  EXPECT_EQ(reason(right, [](Sample* s) { s->rewards["language"] = 0; }), "");
  EXPECT_EQ(of_text("a ``` b"), "");
}

}  // namespace
}  // namespace hone::rl
