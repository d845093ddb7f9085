// From tokens to expressions.
#include <utility>

#include "rl/reward/math_expression.h"

namespace hone::rl {

using Kind = MathToken::Kind;

// Recursive descent over
//   sum     = [+|-] product {(+|-) product}
//   product = power {[*|/] power}           multiplication may go without a sign
//   power   = base {!} [^ argument]
class MathParser {
 public:
  using Node = MathExpression::Node;
  explicit MathParser(std::span<const MathToken> tokens) : tokens_(tokens.begin(), tokens.end()) {}

  std::optional<MathExpression> Parse(size_t* used) {
    if (Sum() < 0) return std::nullopt;
    *used = at_;
    MathExpression expression;
    expression.nodes_ = std::move(nodes_);
    return expression;
  }

 private:
  static constexpr int kMaxDepth = 60;

  const MathToken* Peek(size_t k = 0) const {
    return at_ + k < tokens_.size() ? &tokens_[at_ + k] : nullptr;
  }
  bool Next(std::string_view symbol) const { return Peek() && Peek()->Is(symbol); }
  bool NextKind(Kind kind, size_t k = 0) const { return Peek(k) && Peek(k)->kind == kind; }
  bool Take(std::string_view symbol) {
    if (!Next(symbol)) return false;
    ++at_;
    return true;
  }
  // A node over operands that exist; −1 where one does not.
  int Add(char op, int a, int b, std::string text = "") {
    bool binary = std::string_view("+-*/^r").find(op) != std::string_view::npos;
    if ((op != 'n' && op != 'v' && a < 0) || (binary && b < 0)) return -1;
    nodes_.push_back({op, a, b, std::move(text)});
    return static_cast<int>(nodes_.size()) - 1;
  }

  int Sum() {
    if (++depth_ > kMaxDepth) return -1;
    bool negative = false;
    while (Next("+") || Next("-")) {
      negative ^= Next("-");
      ++at_;
    }
    int left = Product();
    if (negative) left = Add('~', left, -1);
    while (left >= 0 && (Next("+") || Next("-"))) {
      char op = Next("+") ? '+' : '-';
      size_t before = at_++;
      int right = Product();
      if (right < 0) {  // "5 -" ends before the sign
        at_ = before;
        break;
      }
      left = Add(op, left, right);
    }
    --depth_;
    return left;
  }

  int Product() {
    int left = Power();
    while (left >= 0) {
      char op = Next("/") ? '/' : '*';
      if (Next("*") || Next("/")) {
        ++at_;
        bool negative = Take("-");
        int right = Power();
        if (negative) right = Add('~', right, -1);
        left = Add(op, left, right);
      } else if (BeginsFactor()) {
        left = Add('*', left, Power());
      } else {
        break;
      }
    }
    return left;
  }

  bool BeginsFactor() const {
    if (NextKind(Kind::kVariable) || NextKind(Kind::kFunction)) return true;
    return Next("(") || Next("{") || Next("frac") || Next("sqrt") || (Next("|") && bars_ == 0);
  }

  int Power() {
    int base = Base();
    while (base >= 0 && Take("!")) base = Add('!', base, -1);
    if (base >= 0 && Take("^")) base = Add('^', base, Argument(false));
    return base;
  }

  // Of ^, \frac and \sqrt: a group or the next item; of \frac only one digit of a number.
  int Argument(bool one_digit) {
    if (Take("-")) return Add('~', Argument(one_digit), -1);
    MathToken* token = at_ < tokens_.size() ? &tokens_[at_] : nullptr;
    if (token && token->kind == Kind::kNumber && one_digit && token->text.size() > 1) {
      std::string digit = token->text.substr(0, 1);
      token->text.erase(0, 1);
      return Add('n', -1, -1, digit);
    }
    return Base();
  }

  int Group(std::string_view close) {
    ++at_;
    int inside = Sum();
    return inside >= 0 && Take(close) ? inside : -1;
  }

  int Base() {
    if (++depth_ > kMaxDepth || !Peek()) return -1;
    int node = BaseOf(*Peek());
    --depth_;
    return node;
  }

  int BaseOf(const MathToken& token) {
    if (token.kind == Kind::kNumber) return Number();
    if (token.kind == Kind::kVariable) return Variable();
    if (token.kind == Kind::kFunction) return Function();
    if (token.Is("(")) return Group(")");
    if (token.Is("{")) return Group("}");
    if (token.Is("frac")) {
      ++at_;
      int top = Argument(true);
      return top < 0 ? -1 : Add('/', top, Argument(true));
    }
    if (token.Is("sqrt")) return Root();
    if (token.Is("|") && bars_ == 0) {
      ++bars_;
      int inside = Group("|");
      --bars_;
      return Add('|', inside, -1);
    }
    return -1;
  }

  int Root() {
    ++at_;
    int index = -1;
    if (Take("[")) {
      index = Sum();
      if (!Take("]")) return -1;
    } else {
      index = Add('n', -1, -1, "2");
    }
    return Add('r', Argument(false), index);
  }

  static bool Whole(const MathToken* t) {
    return t && t->kind == Kind::kNumber && t->text.find('.') == std::string::npos;
  }

  // A number, or a mixed one: 2\frac{1}{3}, 2 1/3.
  int Number() {
    const MathToken whole = tokens_[at_++];
    int node = Add('n', -1, -1, whole.text);
    if (!Whole(&whole)) return node;
    bool plain = Whole(Peek()) && Peek()->spaced && Peek(1) && Peek(1)->Is("/") && Whole(Peek(2));
    bool latex = Next("frac") && FractionOfNumbers();
    if (!plain && !latex) return node;
    if (latex) return Add('+', node, Base());
    int top = Add('n', -1, -1, tokens_[at_].text), bottom = Add('n', -1, -1, tokens_[at_ + 2].text);
    at_ += 3;
    return Add('+', node, Add('/', top, bottom));
  }

  // \frac{1}{3}, \frac13 but not \frac{x}{3}
  bool FractionOfNumbers() const {
    if (Whole(Peek(1))) return true;
    return Peek(6) && Peek(1)->Is("{") && Whole(Peek(2)) && Peek(3)->Is("}") && Peek(4)->Is("{") &&
           Whole(Peek(5)) && Peek(6)->Is("}");
  }

  int Variable() {
    std::string name = tokens_[at_++].text;
    while (Take("'")) name += "'";
    if (Take("_")) {
      name += "_";
      if (!Take("{")) {
        if (Peek()) name += tokens_[at_++].text;
      } else {
        while (Peek() && !Next("}")) name += tokens_[at_++].text;
        if (!Take("}")) return -1;
      }
    }
    return Add('v', -1, -1, name);
  }

  int Function() {
    std::string name = tokens_[at_++].text;
    int base = -1, exponent = -1;
    bool has_base = Take("_");
    if (has_base && (base = Argument(false)) < 0) return -1;
    bool has_exponent = Take("^");
    if (has_exponent && (exponent = Argument(false)) < 0) return -1;
    int argument = Power();
    bool grouped = at_ > 0 && (tokens_[at_ - 1].Is(")") || tokens_[at_ - 1].Is("}"));
    while (argument >= 0 && !grouped && BeginsFactor() && !NextKind(Kind::kFunction)) {
      argument = Add('*', argument, Power());
    }
    int node = Add('f', argument, -1, name);
    if (has_base) node = Add('/', node, Add('f', base, -1, "ln"));
    return has_exponent ? Add('^', node, exponent) : node;
  }

  std::vector<MathToken> tokens_;
  std::vector<Node> nodes_;
  size_t at_ = 0;
  int depth_ = 0, bars_ = 0;
};

std::optional<MathExpression> MathExpression::Parse(std::span<const MathToken> tokens,
                                                    size_t* used) {
  return MathParser(tokens).Parse(used);
}

}  // namespace hone::rl
