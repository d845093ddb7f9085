// An answer's structure above expressions: lists, tuples, intervals, sets, relations, matrices.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "rl/reward/math_expression.h"

namespace hone::rl {

struct MathItem {
  enum class Kind {
    kText,        // words
    kExpression,  // sides[0]
    kRelation,    // sides[0] relations[0] sides[1] …
    kBracket,     // (a, b), [a, b), …: in order
    kSet,         // in any order; a union of intervals is a set of them
    kMatrix       // parts row by row
  };
  Kind kind = Kind::kText;
  std::vector<MathExpression> sides;
  std::vector<std::string> relations;  // = != < <=
  std::vector<MathItem> parts;
  char open = '(', close = ')';
  size_t rows = 0;
  bool percent = false;
  std::string base;   // of 2516_8
  std::string label;  // "x" of x = 5, whose value this is; `equation` holds both sides if it can
  std::vector<MathExpression> equation;
  std::string text;
};

// A comma- or and-separated list. False when some part is not mathematics; words alone are items of
// kText.
bool ParseMathList(std::span<const MathToken> tokens, std::vector<MathItem>* items);

// In any order; labels must agree where both lists give them.
bool SameList(const std::vector<MathItem>& a, const std::vector<MathItem>& b);

}  // namespace hone::rl
