// Whether two mathematical answers are the same.
#include <cctype>
#include <optional>

#include "rl/reward/verifier.h"

namespace hone::rl {
namespace {

// An exact fraction; overflow makes it nothing.
struct Rational {
  __int128 numerator = 0, denominator = 1;
};

constexpr __int128 kLimit = static_cast<__int128>(1) << 100;

std::string StripAll(std::string text, std::string_view what) {
  for (size_t at; (at = text.find(what)) != std::string::npos;) text.erase(at, what.size());
  return text;
}

// Decoration that does not change a number's value.
std::string Normalise(std::string_view raw) {
  std::string s(raw);
  size_t boxed = s.rfind("\\boxed{");
  if (boxed != std::string::npos) {
    size_t begin = boxed + 7, depth = 1, end = begin;
    while (end < s.size() && depth > 0) {
      depth += s[end] == '{' ? 1 : 0;
      depth -= s[end] == '}' ? 1 : 0;
      if (depth > 0) ++end;
    }
    s = s.substr(begin, end - begin);
  }
  for (const char* junk : {"$", "\\!", "\\,", "\\;", "\\left", "\\right", "\\%", "%", "^\\circ",
                           " ", "\n", "\t", ","}) {
    s = StripAll(s, junk);
  }
  for (const char* alias : {"\\dfrac", "\\tfrac"}) {
    for (size_t at; (at = s.find(alias)) != std::string::npos;) s.replace(at, 6, "\\frac");
  }
  while (!s.empty() && s.back() == '.') s.pop_back();
  return s;
}

std::optional<Rational> ParseDecimal(const std::string& s) {
  Rational r;
  size_t i = 0;
  bool negative = false, digits = false, point = false;
  if (i < s.size() && (s[i] == '-' || s[i] == '+')) negative = s[i++] == '-';
  for (; i < s.size(); ++i) {
    if (s[i] == '.' && !point) {
      point = true;
    } else if (std::isdigit(static_cast<unsigned char>(s[i]))) {
      digits = true;
      r.numerator = r.numerator * 10 + (s[i] - '0');
      if (point) r.denominator *= 10;
      if (r.numerator > kLimit || r.denominator > kLimit) return std::nullopt;
    } else {
      return std::nullopt;
    }
  }
  if (!digits) return std::nullopt;
  if (negative) r.numerator = -r.numerator;
  return r;
}

std::optional<Rational> Divide(const std::optional<Rational>& a, const std::optional<Rational>& b) {
  if (!a || !b || b->numerator == 0) return std::nullopt;
  constexpr __int128 kSmall = static_cast<__int128>(1) << 62;
  auto small = [](__int128 v) { return v < kSmall && v > -kSmall; };
  if (!small(a->numerator) || !small(a->denominator) || !small(b->numerator) ||
      !small(b->denominator)) {
    return std::nullopt;
  }
  return Rational{a->numerator * b->denominator, a->denominator * b->numerator};
}

std::optional<Rational> ParseNumber(const std::string& s) {
  if (auto decimal = ParseDecimal(s)) return decimal;
  size_t slash = s.find('/');
  if (slash != std::string::npos) {
    return Divide(ParseDecimal(s.substr(0, slash)), ParseDecimal(s.substr(slash + 1)));
  }
  bool negative = !s.empty() && s[0] == '-';
  std::string body = negative ? s.substr(1) : s;
  if (body.compare(0, 6, "\\frac{") == 0 && body.back() == '}') {
    size_t middle = body.find("}{");
    if (middle == std::string::npos) return std::nullopt;
    auto r = Divide(ParseDecimal(body.substr(6, middle - 6)),
                    ParseDecimal(body.substr(middle + 2, body.size() - middle - 3)));
    if (r && negative) r->numerator = -r->numerator;
    return r;
  }
  return std::nullopt;
}

}  // namespace

MathMatch CompareMath(std::string_view answer, std::string_view gold) {
  std::string a = Normalise(answer), g = Normalise(gold);
  if (a.empty()) return MathMatch::kUnparseable;
  if (a == g) return MathMatch::kEqual;
  auto x = ParseNumber(a), y = ParseNumber(g);
  if (x && y) {
    bool equal = x->numerator * y->denominator == y->numerator * x->denominator;
    return equal ? MathMatch::kEqual : MathMatch::kDifferent;
  }
  // The gold is a number and the answer is none.
  if (y) return MathMatch::kUnparseable;
  return MathMatch::kDifferent;
}

}  // namespace hone::rl
