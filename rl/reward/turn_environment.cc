#include "rl/reward/turn_environment.h"

#include <fmt/format.h>

#include <cctype>

#include "runtime/error.h"

namespace hone::rl {
namespace {

constexpr int kDeepest = 64;  // parentheses and signs within each other

// num / den, den > 0, in lowest terms.
struct Rational {
  int64_t num = 0, den = 1;
};

std::optional<Rational> Reduced(__int128 num, __int128 den) {
  if (den == 0) return std::nullopt;
  if (den < 0) {
    num = -num;
    den = -den;
  }
  __int128 a = num < 0 ? -num : num, b = den;
  while (b != 0) {
    __int128 rest = a % b;
    a = b;
    b = rest;
  }
  if (a > 1) {
    num /= a;
    den /= a;
  }
  if (num > INT64_MAX || num < -INT64_MAX || den > INT64_MAX) return std::nullopt;
  return Rational{static_cast<int64_t>(num), static_cast<int64_t>(den)};
}

// sum = product (("+" | "-") product)*; product = factor (("*" | "/") factor)*;
// factor = digits | "-" factor | "(" sum ")". Nothing is returned where the text is otherwise, a
// divisor is 0 or a value leaves 64 bits.
class Calculator {
 public:
  explicit Calculator(std::string_view text) : text_(text) {}

  std::optional<Rational> Value() {
    std::optional<Rational> value = Sum();
    return Next() == '\0' && at_ == text_.size() ? value : std::nullopt;
  }

 private:
  char Next() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  std::optional<Rational> Sum() {
    std::optional<Rational> left = Product();
    for (char c = Next(); left && (c == '+' || c == '-'); c = Next()) {
      ++at_;
      std::optional<Rational> right = Product();
      if (!right) return right;
      __int128 sign = c == '+' ? 1 : -1;
      __int128 a = static_cast<__int128>(left->num) * right->den,
               b = sign * static_cast<__int128>(right->num) * left->den;
      left = Reduced(a + b, static_cast<__int128>(left->den) * right->den);
    }
    return left;
  }

  std::optional<Rational> Product() {
    std::optional<Rational> left = Factor();
    for (char c = Next(); left && (c == '*' || c == '/'); c = Next()) {
      ++at_;
      std::optional<Rational> right = Factor();
      if (!right) return right;
      if (c == '/') {
        left = Reduced(static_cast<__int128>(left->num) * right->den,
                       static_cast<__int128>(left->den) * right->num);
      } else {
        left = Reduced(static_cast<__int128>(left->num) * right->num,
                       static_cast<__int128>(left->den) * right->den);
      }
    }
    return left;
  }

  std::optional<Rational> Factor() {
    char c = Next();
    if (std::isdigit(static_cast<unsigned char>(c))) return Number();
    if ((c != '-' && c != '(') || ++depth_ > kDeepest) return std::nullopt;
    ++at_;
    std::optional<Rational> value = c == '-' ? Factor() : Sum();
    --depth_;
    if (c == '-') return value ? Reduced(-static_cast<__int128>(value->num), value->den) : value;
    if (Next() != ')') return std::nullopt;
    ++at_;
    return value;
  }

  std::optional<Rational> Number() {
    __int128 value = 0;
    for (; at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])); ++at_) {
      value = 10 * value + (text_[at_] - '0');
      if (value > INT64_MAX) return std::nullopt;
    }
    return Reduced(value, 1);
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

// A list of two texts, {begin, end}.
void ReadMarks(ConfigReader& r, const char* key, std::string* begin, std::string* end) {
  std::vector<std::string> marks = {*begin, *end};
  r.Optional(key, &marks);
  if (marks.size() != 2) r.Fail(key, "is a list of two marks: [begin, end]");
  *begin = marks[0];
  *end = marks[1];
}

}  // namespace

const std::vector<std::string>& EnvironmentNames() {
  static const std::vector<std::string> names = {"calculator"};
  return names;
}

void EnvironmentConfig::Read(ConfigReader& r) {
  name = EnvironmentNames()[static_cast<size_t>(r.OneOf("name", EnvironmentNames(), -1))];
  ReadMarks(r, "call", &call_begin, &call_end);
  ReadMarks(r, "answer", &answer_begin, &answer_end);
  r.Optional("max_calls", &max_calls);
  if (call_end.empty()) r.Fail("call", "needs a mark that ends a call: there drawing stops");
  if (answer_begin.empty() && answer_end.empty()) {
    r.Fail("answer", "needs a mark, so that an answer can be told from what the model wrote");
  }
  if (max_calls < 1) r.Fail("max_calls", "must be at least 1");
}

std::optional<std::string> CallIn(const EnvironmentConfig& config, std::string_view text) {
  size_t end = text.find(config.call_end);
  if (end == std::string_view::npos) return std::nullopt;
  text = text.substr(0, end);
  size_t begin = config.call_begin.empty() ? std::string_view::npos : text.rfind(config.call_begin);
  return std::string(
      begin == std::string_view::npos ? text : text.substr(begin + config.call_begin.size()));
}

std::string AnswerCall(const std::string& environment, const std::string& call) {
  Check<ConfigError>(environment == "calculator", "[environment] there is no environment '{}'",
                     environment);
  std::optional<Rational> value = Calculator(call).Value();
  if (!value) return "error";
  return value->den == 1 ? std::to_string(value->num)
                         : fmt::format("{}/{}", value->num, value->den);
}

std::string WithMarks(const EnvironmentConfig& config, const std::string& answer) {
  return config.answer_begin + answer + config.answer_end;
}

}  // namespace hone::rl
