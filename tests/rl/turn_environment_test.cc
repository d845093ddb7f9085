#include "rl/reward/turn_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rl/reward/verifier_wire.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

std::string Calculated(const std::string& call) { return AnswerCall("calculator", call); }

TEST(Calculator, ComputesExactly) {
  EXPECT_EQ(Calculated("12*7"), "84");
  EXPECT_EQ(Calculated(" 2 + 3 * 4 - 5"), "9");
  EXPECT_EQ(Calculated("(2+3)*4-5"), "15");
  EXPECT_EQ(Calculated("10-4-3"), "3") << "from left to right";
  EXPECT_EQ(Calculated("2-(3-4)"), "3");
  EXPECT_EQ(Calculated("--5*-2"), "-10");
  EXPECT_EQ(Calculated("7/2"), "7/2");
  EXPECT_EQ(Calculated("6/4/3"), "1/2");
  EXPECT_EQ(Calculated("1/3+1/6"), "1/2");
  EXPECT_EQ(Calculated("-6/3"), "-2");
  EXPECT_EQ(Calculated("9223372036854775807"), "9223372036854775807");
  EXPECT_EQ(Calculated("4611686018427387904*2-1"), "error") << "2^63 lies between";
}

TEST(Calculator, SaysErrorForTheRest) {
  for (const std::string& call :
       {std::string(""), std::string("12*"), std::string("1 2"), std::string("(1+2"),
        std::string("1+2)"), std::string("1/0"), std::string("1/(2-2)"), std::string("two"),
        std::string("1+2=3"), std::string("9223372036854775808"), std::string("1\0", 2),
        std::string("3.5"), std::string(100'000, '('), std::string(100'000, '-') + "1"}) {
    EXPECT_EQ(Calculated(call), "error") << call.substr(0, 40);
  }
  EXPECT_THROW(AnswerCall("oracle", "1"), ConfigError);
}

TEST(CallIn, IsWhatStandsBetweenTheMarks) {
  EnvironmentConfig c;
  EXPECT_EQ(CallIn(c, "let me see <tool>12*7</tool>"), "12*7");
  EXPECT_EQ(CallIn(c, "<tool>1<tool>2</tool>"), "2") << "the mark nearest to the end";
  EXPECT_EQ(CallIn(c, "12*7</tool>"), "12*7") << "the first mark is missing";
  EXPECT_EQ(CallIn(c, "<tool></tool>"), "");
  EXPECT_EQ(CallIn(c, "<tool>12*7"), std::nullopt);
  EXPECT_EQ(CallIn(c, ""), std::nullopt);
  EXPECT_EQ(WithMarks(c, "84"), "<result>84</result>");
}

EnvironmentConfig Read(const std::string& yaml) {
  ConfigReader reader(Config::FromString(yaml, "c.yaml"));
  EnvironmentConfig c;
  c.Read(reader);
  reader.Finish();
  return c;
}

TEST(EnvironmentConfig, IsReadStrictly) {
  EnvironmentConfig c = Read("{name: calculator, call: ['[', ']'], answer: ['=', ';']}");
  EXPECT_EQ(c.call_begin + c.call_end + c.answer_begin + c.answer_end, "[]=;");
  for (const char* wrong :
       {"{name: oracle}", "{}", "{name: calculator, call: [a]}",
        "{name: calculator, call: [a, '']}", "{name: calculator, answer: ['', '']}",
        "{name: calculator, max_calls: 0}", "{name: calculator, calls: 1}"}) {
    EXPECT_THROW(Read(wrong), ConfigError) << wrong;
  }
}

TEST(VerifierWire, CarriesTheEnvironment) {
  RewardRequest request;
  request.completion = "12*7";
  request.environment = "calculator";
  const RewardRequest back = DecodeRequest(EncodeRequest(request));
  EXPECT_EQ(back.environment, "calculator");
  EXPECT_EQ(back.completion, "12*7");
}

}  // namespace
}  // namespace hone::rl
