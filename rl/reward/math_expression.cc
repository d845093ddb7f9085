#include "rl/reward/math_expression.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>

#include "runtime/philox.h"

namespace hone::rl {

namespace {

// Residues modulo a prime p ≡ 1 (mod 4), so that −1 has a root.
class Residues {
 public:
  using Value = uint64_t;
  Residues(uint64_t prime, uint64_t root_of_minus_one) : p_(prime), i_(root_of_minus_one) {}

  std::optional<Value> Number(const std::string& text) const {
    uint64_t value = 0, scale = 1;
    bool point = false;
    for (char c : text) {
      if (c == '.') {
        point = true;
        continue;
      }
      value = (Times(value, 10) + static_cast<uint64_t>(c - '0')) % p_;
      if (point) scale = Times(scale, 10);
    }
    return Divide(value, scale);
  }
  std::optional<Value> Variable(const std::string& name) const {
    if (name == "i") return i_;
    return RandomStream{p_, HashName(name)}.Below(p_ - 1, 0) + 1;
  }
  std::optional<Value> Add(Value a, Value b) const { return (a + b) % p_; }
  std::optional<Value> Subtract(Value a, Value b) const { return (a + p_ - b) % p_; }
  std::optional<Value> Multiply(Value a, Value b) const { return Times(a, b); }
  std::optional<Value> Divide(Value a, Value b) const {
    if (b == 0) return std::nullopt;
    return Times(a, Raise(b, p_ - 2));
  }
  std::optional<Value> Power(Value a, Value, const std::string& exponent) const {
    if (exponent.empty() || a == 0) return std::nullopt;
    bool negative = exponent[0] == '-';
    uint64_t e = 0;  // modulo the group's order
    for (char c : exponent.substr(negative ? 1 : 0)) {
      unsigned __int128 next =
          static_cast<unsigned __int128>(e) * 10 + static_cast<unsigned>(c - '0');
      e = static_cast<uint64_t>(next % (p_ - 1));
    }
    return Raise(a, negative ? (p_ - 1 - e) % (p_ - 1) : e);
  }
  std::optional<Value> Root(Value, Value) const { return std::nullopt; }
  std::optional<Value> Function(const std::string&, Value) const { return std::nullopt; }

 private:
  uint64_t Times(uint64_t a, uint64_t b) const {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b % p_);
  }
  uint64_t Raise(uint64_t a, uint64_t e) const {
    uint64_t result = 1;
    for (; e > 0; e >>= 1, a = Times(a, a)) {
      if (e & 1) result = Times(result, a);
    }
    return result;
  }
  uint64_t p_, i_;
};

const Residues& Prime(int which) {
  static const Residues primes[] = {{2305843009213693921u, 583529827753931384u},
                                    {2305843009213693693u, 966685122347009555u}};
  return primes[which];
}

bool IsConstantName(const std::string& name) {
  return name == "pi" || name == "e" || name == "i" || name == "infty";
}

// Complex numbers at one of a few fixed points, each with a bound of its rounding error.
class Numeric {
 public:
  using Complex = std::complex<double>;
  struct Value {
    Complex v;
    double error;
  };
  explicit Numeric(int point) : point_(point) {}

  std::optional<Value> Number(const std::string& text) const {
    return Checked(std::strtod(text.c_str(), nullptr), 0);
  }
  std::optional<Value> Variable(const std::string& name) const {
    if (name == "pi") return Checked(std::numbers::pi, 0);
    if (name == "e") return Checked(std::numbers::e, 0);
    if (name == "i") return Checked(Complex(0, 1), 0);
    if (name == "infty") return std::nullopt;
    RandomStream stream{HashName("math"), HashName(name)};
    return Checked(0.3 + 2 * stream.Uniform(static_cast<uint64_t>(point_)), 0);
  }
  std::optional<Value> Add(Value a, Value b) const { return Checked(a.v + b.v, a.error + b.error); }
  std::optional<Value> Subtract(Value a, Value b) const {
    return Checked(a.v - b.v, a.error + b.error);
  }
  std::optional<Value> Multiply(Value a, Value b) const {
    return Checked(a.v * b.v, std::abs(a.v) * b.error + std::abs(b.v) * a.error);
  }
  std::optional<Value> Divide(Value a, Value b) const {
    Complex q = a.v / b.v;
    return Checked(q, (a.error + std::abs(q) * b.error) / std::abs(b.v));
  }
  std::optional<Value> Power(Value a, Value b, const std::string&) const {
    Complex p = std::pow(a.v, b.v);
    return Checked(p, 4 * std::abs(p) * (std::abs(b.v) * Relative(a) + b.error * LogSize(a)));
  }
  std::optional<Value> Root(Value a, Value index) const {
    bool odd = index.v.imag() == 0 && std::fmod(index.v.real(), 2) == 1;
    bool negative = odd && a.v.imag() == 0 && a.v.real() < 0;  // the real root
    Complex r = index.v == Complex(2) ? std::sqrt(a.v)
                : negative            ? -std::pow(-a.v, 1.0 / index.v)
                                      : std::pow(a.v, 1.0 / index.v);
    return Checked(r, std::abs(r) * Relative(a));
  }
  std::optional<Value> Function(const std::string& name, Value a) const {
    using F = Complex (*)(const Complex&);
    static const std::pair<const char*, F> functions[] = {
        {"sin", [](const Complex& z) { return std::sin(z); }},
        {"cos", [](const Complex& z) { return std::cos(z); }},
        {"tan", [](const Complex& z) { return std::tan(z); }},
        {"cot", [](const Complex& z) { return 1.0 / std::tan(z); }},
        {"sec", [](const Complex& z) { return 1.0 / std::cos(z); }},
        {"csc", [](const Complex& z) { return 1.0 / std::sin(z); }},
        {"arcsin", [](const Complex& z) { return std::asin(z); }},
        {"arccos", [](const Complex& z) { return std::acos(z); }},
        {"arctan", [](const Complex& z) { return std::atan(z); }},
        {"sinh", [](const Complex& z) { return std::sinh(z); }},
        {"cosh", [](const Complex& z) { return std::cosh(z); }},
        {"tanh", [](const Complex& z) { return std::tanh(z); }},
        {"exp", [](const Complex& z) { return std::exp(z); }},
        {"ln", [](const Complex& z) { return std::log(z); }},
        {"log", [](const Complex& z) { return std::log(z); }},
        {"|", [](const Complex& z) { return Complex(std::abs(z)); }},
        {"!", [](const Complex& z) { return Complex(std::tgamma(z.real() + 1)); }}};
    for (const auto& [known, f] : functions) {
      if (name != known) continue;
      Complex v = f(a.v);
      return Checked(v, (a.error + 1e-15) * std::max(1.0, std::abs(v)) * 10);
    }
    return std::nullopt;
  }

 private:
  static double Relative(const Value& a) { return a.error / std::max(std::abs(a.v), 1e-300); }
  static double LogSize(const Value& a) { return std::abs(std::log(std::abs(a.v) + 1e-300)); }
  static std::optional<Value> Checked(Complex v, double error) {
    if (!std::isfinite(v.real()) || !std::isfinite(v.imag()) || !std::isfinite(error)) {
      return std::nullopt;
    }
    return Value{v, error + 4e-16 * std::abs(v)};
  }
  int point_;
};

constexpr int kPoints = 4;

bool Near(const Numeric::Value& x, const Numeric::Value& y) {
  double size = std::max(std::abs(x.v), std::abs(y.v));
  return std::abs(x.v - y.v) <= 1e-12 * size + 16 * (x.error + y.error);
}

}  // namespace

MathExpression MathExpression::Hundredth() const {
  MathExpression e = *this;
  int value = static_cast<int>(nodes_.size()) - 1;
  e.nodes_.push_back({'n', -1, -1, "100"});
  e.nodes_.push_back({'/', value, value + 1, ""});
  return e;
}

bool MathExpression::is_variable() const { return nodes_.back().op == 'v' && nodes_.size() == 1; }

template <class Domain>
std::optional<typename Domain::Value> MathExpression::Evaluate(const Domain& domain) const {
  std::vector<typename Domain::Value> values;
  auto apply = [&](const Node& node) -> std::optional<typename Domain::Value> {
    if (node.op == 'n') return domain.Number(node.text);
    if (node.op == 'v') return domain.Variable(node.text);
    auto a = values[node.a];
    if (node.op == '~') return domain.Subtract(*domain.Number("0"), a);
    if (node.op == 'f') return domain.Function(node.text, a);
    if (node.op == '|' || node.op == '!') return domain.Function(std::string(1, node.op), a);
    auto b = values[node.b];
    switch (node.op) {
      case '+':
        return domain.Add(a, b);
      case '-':
        return domain.Subtract(a, b);
      case '*':
        return domain.Multiply(a, b);
      case '/':
        return domain.Divide(a, b);
      case 'r':
        return domain.Root(a, b);
      default:
        return domain.Power(a, b, WholeText(node.b));
    }
  };
  for (const Node& node : nodes_) {
    auto value = apply(node);
    if (!value) return std::nullopt;
    values.push_back(*value);
  }
  return values.back();
}

std::string MathExpression::WholeText(int at) const {
  const Node& node = nodes_[at];
  bool negative = node.op == '~';
  const Node& number = negative ? nodes_[node.a] : node;
  bool whole = number.op == 'n' && number.text.find('.') == std::string::npos;
  return whole ? (negative ? "-" : "") + number.text : "";
}

bool MathExpression::has_variables() const {
  return std::any_of(nodes_.begin(), nodes_.end(),
                     [](const Node& n) { return n.op == 'v' && !IsConstantName(n.text); });
}

// Whether the decimal fraction `decimal` is this number rounded to its last digit, with at least
// four significant digits, where this number is written with a division, a root, π, …
bool MathExpression::RoundsTo(const MathExpression& decimal) const {
  const Node& last = decimal.nodes_.back();
  const Node& number = last.op == '~' ? decimal.nodes_[last.a] : last;
  if (number.op != 'n' || has_variables()) return false;
  bool irrational = std::any_of(nodes_.begin(), nodes_.end(),
                                [](const Node& n) { return n.op != 'n' && n.op != '~'; });
  size_t point = number.text.find('.');
  size_t first = number.text.find_first_of("123456789");
  if (!irrational || point == std::string::npos || first == std::string::npos) return false;
  size_t significant = number.text.size() - first - (point > first ? 1 : 0);
  if (significant < 4) return false;
  double unit = std::pow(10.0, -static_cast<double>(number.text.size() - point - 1));
  auto x = Evaluate(Numeric(0)), y = decimal.Evaluate(Numeric(0));
  return x && y && std::abs(x->v - y->v) <= unit * 0.5 * (1 + 1e-9);
}

bool MathExpression::SameValue(const MathExpression& a, const MathExpression& b) {
  auto x = a.Evaluate(Prime(0)), y = b.Evaluate(Prime(0));
  bool same = true;
  if (x && y) {
    same = *x == *y && a.Evaluate(Prime(1)) == b.Evaluate(Prime(1));
  } else {
    for (int point = 0; point < kPoints && same; ++point) {
      Numeric domain(point);
      auto u = a.Evaluate(domain), v = b.Evaluate(domain);
      same = u && v && Near(*u, *v);
    }
  }
  return same || a.RoundsTo(b) || b.RoundsTo(a);
}

bool MathExpression::SameRelation(const MathExpression& a, const MathExpression& b,
                                  const MathExpression& c, const MathExpression& d, bool positive) {
  if (!a.has_variables() && !b.has_variables()) return false;
  std::optional<Numeric::Value> ratio;
  for (int point = 0; point < kPoints; ++point) {
    Numeric domain(point);
    auto va = a.Evaluate(domain), vb = b.Evaluate(domain), vc = c.Evaluate(domain),
         vd = d.Evaluate(domain);
    if (!va || !vb || !vc || !vd) return false;
    auto first = domain.Subtract(*va, *vb), second = domain.Subtract(*vc, *vd);
    if (!first || !second || std::abs(second->v) <= 16 * second->error) return false;
    auto quotient = domain.Divide(*first, *second);
    if (!quotient) return false;
    if (!ratio) ratio = quotient;
    if (!Near(*ratio, *quotient)) return false;
  }
  bool sign_fits = !positive || (std::abs(ratio->v.imag()) < 1e-9 && ratio->v.real() > 0);
  return std::abs(ratio->v) > 1e-9 && sign_fits;
}

}  // namespace hone::rl
