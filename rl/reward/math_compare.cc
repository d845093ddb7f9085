// Whether two answers' structures say the same.
#include <algorithm>
#include <string_view>

#include "rl/reward/math_structure.h"

namespace hone::rl {
namespace {

constexpr size_t kMaxItems = 64;  // of a list that is compared in any order

bool Same(const MathItem& a, const MathItem& b);

bool SameInOrder(const std::vector<MathItem>& a, const std::vector<MathItem>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), Same);
}

MathExpression Infinity(bool negative) {
  auto tokens = TokeniseMath(negative ? "-\\infty" : "\\infty");
  size_t used = 0;
  return *MathExpression::Parse(*tokens, &used);
}

MathItem OfExpression(const MathExpression& e) {
  MathItem item;
  item.kind = MathItem::Kind::kExpression;
  item.sides = {e};
  return item;
}

// lo < x ≤ hi as (lo, hi].
bool ToInterval(const MathItem& item, MathItem* interval) {
  if (item.kind != MathItem::Kind::kRelation || item.relations[0][0] != '<') return false;
  interval->kind = MathItem::Kind::kBracket;
  bool first = item.sides.size() == 2 && item.sides[0].is_variable();
  bool last = item.sides.size() == 2 && item.sides[1].is_variable();
  bool middle = item.sides.size() == 3 && item.sides[1].is_variable();
  if (!first && !last && !middle) return false;
  const std::string& low = item.relations.front();
  const std::string& high = item.relations.back();
  interval->open = !first && low == "<=" ? '[' : '(';
  interval->close = !last && high == "<=" ? ']' : ')';
  interval->parts = {OfExpression(first ? Infinity(true) : item.sides.front()),
                     OfExpression(last ? Infinity(false) : item.sides.back())};
  return true;
}

bool SameBracket(const MathItem& a, const MathItem& b) {
  bool ends = a.parts.size() != 2 || (a.open == b.open && a.close == b.close);
  return ends && SameInOrder(a.parts, b.parts);
}

bool SameRelation(const MathItem& a, const MathItem& b) {
  if (a.relations != b.relations) return false;
  if (a.relations.size() == 1) {
    return MathExpression::SameRelation(a.sides[0], a.sides[1], b.sides[0], b.sides[1],
                                        a.relations[0][0] == '<');
  }
  return std::equal(a.sides.begin(), a.sides.end(), b.sides.begin(), b.sides.end(),
                    MathExpression::SameValue);
}

bool SameNumber(const MathItem& a, const MathItem& b) {
  if (!a.base.empty() && !b.base.empty() && a.base != b.base) return false;
  const MathExpression &x = a.sides[0], &y = b.sides[0];
  if (MathExpression::SameValue(x, y)) return true;
  // 25% is .25 too, where only one of them is written with the sign.
  if (a.percent == b.percent) return false;
  return a.percent ? MathExpression::SameValue(x.Hundredth(), y)
                   : MathExpression::SameValue(x, y.Hundredth());
}

std::string Lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

bool Same(const MathItem& a, const MathItem& b) {
  using K = MathItem::Kind;
  if (!a.equation.empty() && !b.equation.empty() &&
      MathExpression::SameRelation(a.equation[0], a.equation[1], b.equation[0], b.equation[1],
                                   false)) {
    return true;
  }
  MathItem interval;
  if (a.kind == K::kBracket && ToInterval(b, &interval)) return SameBracket(a, interval);
  if (b.kind == K::kBracket && ToInterval(a, &interval)) return SameBracket(interval, b);
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case K::kText:
      return Lower(a.text) == Lower(b.text);
    case K::kExpression:
      return SameNumber(a, b);
    case K::kRelation:
      return SameRelation(a, b);
    case K::kBracket:
      return SameBracket(a, b);
    case K::kSet:
      return SameList(a.parts, b.parts);
    case K::kMatrix:
      return a.rows == b.rows && SameInOrder(a.parts, b.parts);
  }
  return false;
}

}  // namespace

bool SameList(const std::vector<MathItem>& a, const std::vector<MathItem>& b) {
  if (a.size() != b.size()) return false;
  if (a.size() > kMaxItems) return SameInOrder(a, b);
  std::vector<bool> taken(b.size(), false);
  for (const MathItem& item : a) {
    size_t j = 0;
    for (; j < b.size(); ++j) {
      bool labels =
          a.size() == 1 || item.label.empty() || b[j].label.empty() || item.label == b[j].label;
      if (!taken[j] && labels && Same(item, b[j])) break;
    }
    if (j == b.size()) return false;
    taken[j] = true;
  }
  return true;
}

}  // namespace hone::rl
