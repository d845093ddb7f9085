#include "rl/reward/math_structure.h"

#include <algorithm>
#include <iterator>

namespace hone::rl {
namespace {

using Kind = MathToken::Kind;
using Tokens = std::span<const MathToken>;

constexpr int kMaxNesting = 16;

bool Opens(const MathToken& t) {
  return t.Is("(") || t.Is("[") || t.Is("{") || t.Is("\\{") || t.Is("begin");
}
bool Closes(const MathToken& t) {
  return t.Is(")") || t.Is("]") || t.Is("}") || t.Is("\\}") || t.Is("end");
}

// Parts between tokens that `parts` names, outside all brackets.
template <class Predicate>
std::vector<Tokens> Split(Tokens tokens, Predicate separates) {
  std::vector<Tokens> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    depth += Opens(tokens[i]) ? 1 : Closes(tokens[i]) ? -1 : 0;
    if (depth != 0 || !separates(tokens[i])) continue;
    parts.push_back(tokens.subspan(begin, i - begin));
    begin = i + 1;
  }
  parts.push_back(tokens.subspan(begin));
  return parts;
}

// Whether the first token opens what only the last one closes.
bool Enclosed(Tokens tokens) {
  if (tokens.size() < 2 || !Opens(tokens.front()) || !Closes(tokens.back())) return false;
  int depth = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    depth += Opens(tokens[i]) ? 1 : Closes(tokens[i]) ? -1 : 0;
    if (depth == 0) return i + 1 == tokens.size();
  }
  return false;
}

bool IsComma(const MathToken& t) { return t.Is(",") || t.Is("and"); }
bool IsRelation(const MathToken& t) {
  static constexpr std::string_view kRelations[] = {"=", "!=", "<", "<=", ">", ">=", "~", "in"};
  return t.kind == Kind::kSymbol &&
         std::find(std::begin(kRelations), std::end(kRelations), t.text) != std::end(kRelations);
}

// What a value may be called: x, f(x), |AB|, a_3, (p, q, r), \frac{NO}{BO}, "the area".
bool IsName(Tokens tokens) {
  bool letters = false;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const MathToken& t = tokens[i];
    if (t.Is("_")) {  // a subscript may be anything
      ++i;
      while (i < tokens.size() && tokens[i - 1].text != "}" && tokens[i].text != "}" &&
             tokens[i - 1].text != "_") {
        ++i;
      }
      if (i < tokens.size() && tokens[i].Is("{")) {
        while (i < tokens.size() && !tokens[i].Is("}")) ++i;
      }
      continue;
    }
    if (t.kind == Kind::kNumber || t.kind == Kind::kFunction) return false;
    if (t.Is("+") || t.Is("-") || t.Is("*") || t.Is("/") || t.Is("^") || t.Is("sqrt")) return false;
    letters |= t.kind == Kind::kVariable || t.kind == Kind::kWord;
  }
  return letters;
}

// A name without its arguments and braces.
std::string LabelOf(Tokens tokens) {
  std::string label;
  for (const MathToken& t : tokens) {
    if (t.Is("(") && !label.empty()) break;
    if (!t.Is("{") && !t.Is("}")) label += t.text;
  }
  return label;
}

class Parser {
 public:
  bool List(Tokens tokens, std::vector<MathItem>* items) {
    if (++depth_ > kMaxNesting) return false;
    bool ok = true;
    for (Tokens part : Split(tokens, IsComma)) {
      if (part.empty()) continue;  // "19, 46, and 82"
      items->emplace_back();
      ok = ok && Item(part, &items->back());
    }
    --depth_;
    return ok && !items->empty();
  }

 private:
  bool Item(Tokens tokens, MathItem* item) {
    while (Enclosed(tokens) && tokens.front().Is("{")) {
      tokens = tokens.subspan(1, tokens.size() - 2);
      if (std::any_of(tokens.begin(), tokens.end(), IsComma)) return Set(tokens, item);
    }
    tokens = WithoutPreamble(tokens);
    if (tokens.empty()) return false;
    auto united = Split(tokens, [](const MathToken& t) { return t.Is("cup"); });
    if (united.size() > 1) return Union(united, item);
    if (tokens.front().Is("begin") && Enclosed(tokens)) return Matrix(tokens, item);
    if (std::any_of(tokens.begin(), tokens.end(), IsRelation)) {
      if (Split(tokens, IsRelation).size() > 1) return Relation(tokens, item);
    }
    if (Enclosed(tokens)) {
      Tokens inside = tokens.subspan(1, tokens.size() - 2);
      if (tokens.front().Is("\\{")) return Set(inside, item);
      if (Split(inside, IsComma).size() > 1) return Bracket(tokens, item);
    }
    return Expression(tokens, item);
  }

  // "The answer is 5" and "Answer: 5" mean 5.
  static Tokens WithoutPreamble(Tokens tokens) {
    if (tokens.empty() || tokens.front().kind != Kind::kWord) return tokens;
    for (size_t i = tokens.size(); i-- > 0;) {
      bool ends = tokens[i].Is(":") || (tokens[i].kind == Kind::kWord && tokens[i].text == "is");
      if (ends && i + 1 < tokens.size()) return tokens.subspan(i + 1);
    }
    return tokens;
  }

  bool Set(Tokens inside, MathItem* item) {
    item->kind = MathItem::Kind::kSet;
    return List(inside, &item->parts);
  }

  bool Union(const std::vector<Tokens>& united, MathItem* item) {
    item->kind = MathItem::Kind::kSet;
    if (++depth_ > kMaxNesting) return false;
    bool ok = true;
    for (Tokens part : united) {
      item->parts.emplace_back();
      ok = ok && !part.empty() && Item(part, &item->parts.back());
    }
    --depth_;
    return ok;
  }

  bool Bracket(Tokens tokens, MathItem* item) {
    item->kind = MathItem::Kind::kBracket;
    item->open = tokens.front().text[0];
    item->close = tokens.back().text[0];
    return List(tokens.subspan(1, tokens.size() - 2), &item->parts);
  }

  bool Matrix(Tokens tokens, MathItem* item) {
    item->kind = MathItem::Kind::kMatrix;
    for (Tokens row : Split(tokens.subspan(1, tokens.size() - 2),
                            [](const MathToken& t) { return t.Is("\\\\"); })) {
      if (row.empty()) continue;
      ++item->rows;
      for (Tokens entry : Split(row, [](const MathToken& t) { return t.Is("&"); })) {
        item->parts.emplace_back();
        if (entry.empty() || !Expression(entry, &item->parts.back())) return false;
      }
    }
    return item->rows > 0;
  }

  static bool Side(Tokens tokens, std::vector<MathExpression>* sides) {
    size_t used = 0;
    auto side = MathExpression::Parse(tokens, &used);
    if (!side || used != tokens.size()) return false;
    sides->push_back(std::move(*side));
    return true;
  }

  bool Relation(Tokens tokens, MathItem* item) {
    std::vector<Tokens> sides = Split(tokens, IsRelation);
    std::vector<std::string> relations;
    for (Tokens side : sides) {
      if (side.data() + side.size() < tokens.data() + tokens.size()) {
        relations.push_back(side.data()[side.size()].text);
      }
    }
    if (sides.size() == 2 && relations[0] == "in") return Item(sides[1], item);
    bool equation = std::all_of(relations.begin(), relations.end(),
                                [](const std::string& r) { return r == "=" || r == "~"; });
    if (equation) return Equation(sides, relations, item);
    item->kind = MathItem::Kind::kRelation;
    for (Tokens side : sides) {
      if (!Side(side, &item->sides)) return false;
    }
    if (relations[0] == ">" || relations[0] == ">=") {  // all turned to < and <=
      std::reverse(item->sides.begin(), item->sides.end());
      std::reverse(relations.begin(), relations.end());
      for (std::string& r : relations) {
        if (r[0] != '>') return false;
        r[0] = '<';
      }
    }
    item->relations = std::move(relations);
    return true;
  }

  // name = … = value ≈ approximation
  bool Equation(std::vector<Tokens> sides, const std::vector<std::string>& relations,
                MathItem* item) {
    size_t exact = 1;
    while (exact < sides.size() && relations[exact - 1] == "=") ++exact;
    bool only_name = exact == 1 && IsName(sides[0]);
    if (exact < sides.size() && !only_name) sides.resize(exact);
    if (sides.size() == 1) return Item(sides[0], item);
    if (sides[0].empty() || IsName(sides[0])) {
      std::vector<MathExpression> both;
      if (!Item(sides.back(), item)) return false;
      item->label = LabelOf(sides[0]);
      if (sides.size() == 2 && Side(sides[0], &both) && Side(sides[1], &both)) {
        item->equation = std::move(both);
      }
      return true;
    }
    item->kind = MathItem::Kind::kRelation;
    item->relations = {"="};
    if (!Side(sides.front(), &item->sides) || !Side(sides.back(), &item->sides)) return false;
    // "5 + 7 = 12" gives a value; "x + y = 3" says something.
    if (!item->sides[0].has_variables() && !item->sides[1].has_variables()) {
      item->kind = MathItem::Kind::kExpression;
      item->sides.erase(item->sides.begin());
      item->relations.clear();
    } else {
      item->equation = item->sides;
    }
    return true;
  }

  // An expression, and behind it units, which do not count.
  static bool Expression(Tokens tokens, MathItem* item) {
    bool words = std::all_of(tokens.begin(), tokens.end(), [](const MathToken& t) {
      return t.kind == Kind::kWord || t.kind == Kind::kVariable;
    });
    if (words && tokens.front().kind == Kind::kWord) {
      item->kind = MathItem::Kind::kText;
      for (const MathToken& t : tokens) item->text += (item->text.empty() ? "" : " ") + t.text;
      return true;
    }
    size_t used = 0;
    auto expression = MathExpression::Parse(tokens, &used);
    if (!expression) return false;
    item->kind = MathItem::Kind::kExpression;
    item->sides.push_back(std::move(*expression));
    return Tail(tokens.subspan(used), item);
  }

  static bool Tail(Tokens tokens, MathItem* item) {
    if (!tokens.empty() && tokens[0].Is("_")) {
      size_t i = 1;
      for (; i < tokens.size() && (i == 1 || tokens[1].Is("{")); ++i) {
        if (tokens[i].kind == Kind::kNumber) item->base = tokens[i].text;
        if (tokens[i].Is("}")) {
          ++i;
          break;
        }
      }
      tokens = tokens.subspan(i);
    }
    bool unit = false;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (tokens[i].Is("%")) {
        item->percent = true;
      } else if (tokens[i].kind == Kind::kWord) {
        unit = true;
      } else if (!unit) {
        return false;
      } else if (tokens[i].kind == Kind::kNumber && !tokens[i - 1].Is("^") &&
                 !tokens[i - 1].Is("{")) {
        return false;
      }
    }
    return true;
  }

  int depth_ = 0;
};

}  // namespace

bool ParseMathList(std::span<const MathToken> tokens, std::vector<MathItem>* items) {
  bool choice = std::any_of(tokens.begin(), tokens.end(),
                            [](const MathToken& t) { return t.Is("pm") || t.Is("mp"); });
  if (!choice) return Parser().List(tokens, items);
  for (bool upper : {true, false}) {  // both signs, together
    std::vector<MathToken> copy(tokens.begin(), tokens.end());
    for (MathToken& t : copy) {
      if (t.Is("pm")) t.text = upper ? "+" : "-";
      if (t.Is("mp")) t.text = upper ? "-" : "+";
    }
    if (!Parser().List(copy, items)) return false;
  }
  return true;
}

}  // namespace hone::rl
