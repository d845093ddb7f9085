// Mathematical answers: what is equal, what is not, what cannot be read; and how often CompareMath
// agrees with graders of other projects on their own data.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "rl/reward/verifier.h"
#include "tests/read_json.h"

namespace hone::rl {
namespace {

using nlohmann::json;

struct Case {
  const char *gold, *answer;
};

TEST(CompareMath, CallsEqual) {
  const Case cases[] = {{"42", "42"},
                        {"42", " 42. "},
                        {"42", "+42"},
                        {"42", "42.0"},
                        {"-5", "−5"},
                        {"1234567", "1,234,567"},
                        {"1,000", "1000"},
                        {"1000", "1 000"},
                        {"10000", "10{,}000"},
                        {"362880", "362,\\!880"},
                        {"1000.99", "$1,000.99"},
                        {"0.5", ".5"},
                        {"1/2", "0.50"},
                        {"\\frac{1}{2}", "2/4"},
                        {"\\frac12", "\\dfrac{1}{2}"},
                        {"-\\frac{10}{9}", "-10/9"},
                        {"\\frac{a}{b}", "a/b"},
                        {"2\\frac{1}{2}", "2.5"},
                        {"-2 1/2", "-5/2"},
                        {"10\\%", "10"},
                        {"25%", "0.25"},
                        {"28\\%", "28 percent"},
                        {"120", "120^\\circ"},
                        {"90^{\\circ}", "90 degrees"},
                        {"15\\mbox{ cm}^2", "15"},
                        {"5", "5 square feet"},
                        {"\\$5", "5 dollars"},
                        {"x=7", "7"},
                        {"7", "\\boxed{7}"},
                        {"7", "The answer is \\boxed{7}."},
                        {"7", "The answer is $7$"},
                        {"7", "So there are 7 of them, as 3 + 4 = 7"},
                        {"\\sqrt{8}", "2\\sqrt{2}"},
                        {"\\sqrt[3]{-8}", "-2"},
                        {"\\frac{9}{4}\\pi", "\\frac{9\\pi}{4}"},
                        {"\\pi/2", "\\frac{\\pi}{2}"},
                        {"1.2\\times10^{-3}", "0.0012"},
                        {"6290000", "6.29e6"},
                        {"10^{40}", "10000000000000000000000000000000000000000"},
                        {"(1,2)", "\\left( 1, 2 \\right)"},
                        {"[0,1)", "[ 0 , 1 )"},
                        {"1,2,3", "3, 2, and 1"},
                        {"\\{1,2\\}", "2, 1"},
                        {"(-\\infty,1)\\cup(1,\\infty)", "(-\\infty, 1) \\cup (1, +\\infty)"},
                        {"x > 5", "(5, \\infty)"},
                        {"x \\leq 5", "5 >= x"},
                        {"x<1", "-x>-1"},
                        {"-3<x\\le 4", "(-3,4]"},
                        {"(r+5)(r+5)", "(r+5)^2"},
                        {"x^2+2x+1", "1+2*x + x**2"},
                        {"\\frac{x+2}{7}", "x/7+2/7"},
                        {"2x+4y-3=0", "y=-\\frac12x+\\frac34"},
                        {"3\\pm2\\sqrt2", "3-2\\sqrt{2}, 3+2\\sqrt{2}"},
                        {"\\sin^2 t", "1-\\cos^2 t"},
                        {"\\log_2 8", "3"},
                        {"5!", "120"},
                        {"|{-3}|", "3"},
                        {"i^2", "-1"},
                        {"\\frac{1}{1-i}", "\\frac{1+i}{2}"},
                        {"2516_8", "2516"},
                        {"\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
                         "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}"},
                        {"\\text{odd}", "Odd"},
                        {"A", "\\textbf{A}"},
                        {"\\text{(C)}", "C"},
                        {"\\frac13", "0.3333"},
                        {"4.1231", "\\sqrt{17}"},
                        {"x=1, y=2", "y=2, x=1"}};
  for (const Case& c : cases) {
    EXPECT_EQ(CompareMath(c.answer, c.gold), MathMatch::kEqual)
        << c.answer << " against " << c.gold;
  }
}

TEST(CompareMath, CallsDifferent) {
  const Case cases[] = {
      {"42", "43"},
      {"42", "-42"},
      {"1000", "1,00"},
      {"0.5", "50"},
      {"\\frac12", "\\frac13"},
      {"7", "6.9999999"},
      {"\\frac13", "0.33"},
      {"\\frac13", "0.3334"},
      {"(1,2)", "(2,1)"},
      {"[0,9)", "[0,9]"},
      {"[0,9)", "[0,1)"},
      {"1,2,3", "1,2"},
      {"1,2", "1,2,2"},
      {"x>5", "x\\geq5"},
      {"x>5", "x<5"},
      {"x+2n+1", "x+1"},
      {"x^2+1", "x^3+1"},
      {"1\\sqrt{19}", "1"},
      {"2", "\\frac{1+\\sqrt5}{2}"},
      {"a^2+b=0", "0"},
      {"10_2", "10_3"},
      {"\\text{odd}", "even"},
      {"A", "B"},
      {"12:00", "1:00"},
      {"4abc", "4"},
      {"5x", "5"},
      {"\\pm 2021", "2021"},
      {"x=1, y=2", "x=2, y=1"},
      {"2 = 1 + 1", "3"},
      {"-32+32i\\sqrt3", "\\frac{1}{2^{98}}"},
      {"10000000000000000000000000000000000000000", "10000000000000000000000000000000000000001"},
      {"170141183460469231731687303715884105728", "-170141183460469231731687303715884105728"},
      {"\\sqrt{2}", "\\sqrt{2}+0.000000001"},
      {"\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2&3&4\\end{pmatrix}"}};
  for (const Case& c : cases) {
    EXPECT_NE(CompareMath(c.answer, c.gold), MathMatch::kEqual)
        << c.answer << " against " << c.gold;
  }
}

TEST(CompareMath, TellsWrongFromUnreadable) {
  EXPECT_EQ(CompareMath("43", "42"), MathMatch::kDifferent);
  EXPECT_EQ(CompareMath("no idea", "42"), MathMatch::kUnparseable);
  EXPECT_EQ(CompareMath("", "42"), MathMatch::kUnparseable);
  EXPECT_EQ(CompareMath(" \n", "42"), MathMatch::kUnparseable);
  EXPECT_EQ(CompareMath("((", "42"), MathMatch::kUnparseable);
  EXPECT_EQ(CompareMath("even", "odd"), MathMatch::kDifferent);
}

// Every one of these must end at once, and none equals 2.
TEST(CompareMath, BearsHostileText) {
  auto many = [](const std::string& s, int n) {
    std::string text;
    for (int i = 0; i < n; ++i) text += s;
    return text;
  };
  std::string invalid = "\xff\xfe\x80";
  const std::string hostile[] = {"9^9^9^9^9",
                                 "10^{10^{10}}",
                                 "2^{99999999999999999999}",
                                 "1e999999999",
                                 many("(", 4000),
                                 many("(", 1000) + "3" + many(")", 1000),
                                 many("\\frac{", 600),
                                 many("{", 3000),
                                 many("\\boxed{", 500),
                                 many("\\boxed{1}", 3000),
                                 many("\\sqrt", 900),
                                 many("-", 3000) + "3",
                                 many("1,", 2000),
                                 many("x", 3999),
                                 many("|", 3000),
                                 "1/0",
                                 "0^{-1}",
                                 "\\frac{1}{x-x}",
                                 invalid,
                                 many("!", 100),
                                 many("3", 1) + many("!", 100),
                                 many("7", 100'000),
                                 many("\\text{", 500),
                                 "\\",
                                 "\\frac",
                                 "\\frac{1}",
                                 "_",
                                 "^",
                                 "2^",
                                 "\\begin{pmatrix}",
                                 std::string("2\0", 2),
                                 many("$", 4001),
                                 many("\\pm 1", 300),
                                 many("x=", 1000),
                                 many("(1,", 1000),
                                 many("a<", 1000)};
  for (const std::string& text : hostile) {
    EXPECT_NE(CompareMath(text, "2"), MathMatch::kEqual) << text.substr(0, 40);
    CompareMath("2", text);
    CompareMath(text, many(text, 2));
  }
}

// From other projects: pairs with a grader's verdict. They disagree with each other in policy
// (order of lists, percent, how prose is read), so the shares are floors of what was measured.
class GradedPairs : public testing::Test {
 protected:
  std::vector<json> Read(const std::string& name) {
    std::vector<json> rows;
    if (const char* root = std::getenv("HONE_DATA")) {
      std::ifstream file(std::string(root) + "/" + name);
      for (std::string line; std::getline(file, line);) rows.push_back(ParseJson(line));
    }
    return rows;
  }
  void Add(const std::string& gold, const std::string& answer, bool expected) {
    bool equal = CompareMath(answer, gold) == MathMatch::kEqual;
    ++pairs_;
    agreed_ += equal == expected;
    falsely_equal_ += equal && !expected;
  }
  double share() const { return static_cast<double>(agreed_) / pairs_; }
  int pairs_ = 0, agreed_ = 0, falsely_equal_ = 0;
};

#define SKIP_WITHOUT_DATA(rows) \
  if (rows.empty()) GTEST_SKIP() << "set HONE_DATA to the folder of the data sets to run this"

TEST_F(GradedPairs, MathVerifyAndOthers) {
  auto rows = Read("math_equiv/math_equiv_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  for (auto& row : rows) Add(row["gold"], row["pred"], row["expected"]);
  EXPECT_GE(share(), 0.90) << agreed_ << " of " << pairs_;
  EXPECT_LE(falsely_equal_, 3);
}

TEST_F(GradedPairs, QwenPairs) {
  auto rows = Read("math_equiv/qwen_graded_pairs_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  for (auto& row : rows) Add(row["gold"], row["pred"], row["expected"]);
  EXPECT_EQ(agreed_, pairs_);
}

TEST_F(GradedPairs, WholeResponsesToMath) {
  auto rows = Read("math/qwen_math_rollouts_graded_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  for (auto& row : rows) {
    for (size_t i = 0; i < row["code"].size(); ++i) Add(row["gt"], row["code"][i], row["score"][i]);
  }
  EXPECT_EQ(agreed_, pairs_);
}

TEST_F(GradedPairs, Gsm8kSolutions) {
  auto rows = Read("gsm8k/gsm8k_model_solutions_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  auto after_a = [](const std::string& text) {
    size_t at = text.rfind("A: ");
    return at == std::string::npos ? std::string() : text.substr(at + 3);
  };
  for (auto& row : rows) {
    for (auto& [name, value] : row.items()) {
      if (!value.is_object()) continue;
      Add(after_a(row["ground_truth"]), after_a(value["solution"]), value["is_correct"]);
    }
  }
  EXPECT_EQ(pairs_, 2640);
  EXPECT_EQ(agreed_, pairs_);
}

// Every published answer equals itself in another dress.
TEST_F(GradedPairs, MathAnswersEqualThemselves) {
  auto rows = Read("math/math500_open.jsonl");
  SKIP_WITHOUT_DATA(rows);
  for (auto& row : rows) {
    std::string gold = row["answer"], dressed = gold;
    for (size_t at = 0; (at = dressed.find("\\frac", at)) != std::string::npos; at += 6) {
      dressed.replace(at, 5, "\\dfrac");
    }
    Add(gold, "So the answer is $\\boxed{ " + dressed + " }$.", true);
  }
  EXPECT_EQ(agreed_, pairs_);
}

}  // namespace
}  // namespace hone::rl
