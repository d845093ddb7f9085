// Mathematical expressions, and whether two have the same value for all values of their variables.
//
// Expressions of + − × ÷ and integer powers are compared exactly: both are evaluated modulo two
// primes near 2^61, each variable (and π and e, which satisfy no such equation) being a fixed
// residue. No size of number overflows, and different expressions agree by chance only, about once
// in 2^122. Others — roots, logarithms, powers with variables — are evaluated in complex double
// precision at a few fixed points.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "rl/reward/math_token.h"

namespace hone::rl {

class MathExpression {
 public:
  // The longest expression at the front of `tokens`; `*used` becomes how many it took. Nothing when
  // there is none there, or it is nested more than 60 deep.
  static std::optional<MathExpression> Parse(std::span<const MathToken> tokens, size_t* used);

  static bool SameValue(const MathExpression& a, const MathExpression& b);
  // Whether a − b = k (c − d) for some constant k ≠ 0, positive when `positive`: the equations (or
  // inequalities) a = b and c = d then say the same.
  static bool SameRelation(const MathExpression& a, const MathExpression& b,
                           const MathExpression& c, const MathExpression& d, bool positive);
  // This ÷ 100.
  MathExpression Hundredth() const;
  // One letter or symbol.
  bool is_variable() const;
  bool has_variables() const;

 private:
  friend class MathParser;
  struct Node {
    char op;  // n number, v variable, + - * / ^, ~ negation, r root (a of index b), f function,
              // | absolute value, ! factorial
    int a, b;
    std::string text;
  };
  template <class Domain>
  std::optional<typename Domain::Value> Evaluate(const Domain& domain) const;
  // The digits of node `at`, sign included, when it is a whole number written out; else "".
  std::string WholeText(int at) const;
  bool RoundsTo(const MathExpression& decimal) const;

  std::vector<Node> nodes_;  // children before parents; the last is the root
};

}  // namespace hone::rl
