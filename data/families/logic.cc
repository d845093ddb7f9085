#include "data/families/family.h"

namespace hone::data {
namespace {

constexpr std::string_view kSigns = "&|^";

bool Apply(char sign, bool a, bool b) {
  return sign == '&' ? a && b : sign == '|' ? a || b : a != b;
}
std::string Bit(bool value) { return value ? "1" : "0"; }

// Operations in post-order: an operand is a constant or the result of an earlier one, used once.
struct Node {
  char sign;
  int left = -1, right = -1;  // nodes, or −1 for the constants below
  bool left_bit = false, right_bit = false;
};

class Expression {
 public:
  static Expression Draw(Draws& draws, int operations) {
    Expression expression;
    expression.DrawNode(draws, operations);
    return expression;
  }
  std::string Text() const { return NodeText(Root(), std::vector<bool>(nodes_.size(), true)); }
  bool Value() const { return ValueOf(Root()); }

  std::vector<std::string> Steps(const std::vector<bool>& merged) const {
    std::vector<std::string> steps;
    for (int n = 0; n <= Root(); ++n) {
      if (n < Root() && merged[static_cast<size_t>(n)]) continue;
      steps.push_back(NodeText(n, merged) + '=' + Bit(ValueOf(n)));
    }
    return steps;
  }

 private:
  int Root() const { return static_cast<int>(nodes_.size()) - 1; }
  const Node& At(int n) const { return nodes_[static_cast<size_t>(n)]; }

  int DrawNode(Draws& draws, int operations) {
    int left = draws.Range(0, operations - 1);
    Node node{kSigns[draws.Below(kSigns.size())]};
    if (left > 0) node.left = DrawNode(draws, left);
    if (operations - 1 - left > 0) node.right = DrawNode(draws, operations - 1 - left);
    node.left_bit = draws.Chance(0.5);
    node.right_bit = draws.Chance(0.5);
    nodes_.push_back(node);
    return Root();
  }
  bool ValueOf(int n) const {
    const Node& node = At(n);
    return Apply(node.sign, node.left < 0 ? node.left_bit : ValueOf(node.left),
                 node.right < 0 ? node.right_bit : ValueOf(node.right));
  }
  std::string NodeText(int n, const std::vector<bool>& merged) const {
    const Node& node = At(n);
    return OperandText(node.left, node.left_bit, merged) + node.sign +
           OperandText(node.right, node.right_bit, merged);
  }
  std::string OperandText(int n, bool bit, const std::vector<bool>& merged) const {
    if (n < 0) return Bit(bit);
    return merged[static_cast<size_t>(n)] ? '(' + NodeText(n, merged) + ')' : Bit(ValueOf(n));
  }

  std::vector<Node> nodes_;
};

class LogicFamily : public Family {
 public:
  std::string_view name() const override { return "logic"; }
  int min_level() const override { return 1; }
  int max_level() const override { return 12; }

  Item Draw(Draws& draws, int level, const std::string&) const override {
    Expression expression = Expression::Draw(draws, level);
    Item item;
    item.expression = expression.Text() + '=';
    item.answer = Bit(expression.Value());
    item.joints = level - 1;
    item.steps = [expression](const std::vector<bool>& merged) { return expression.Steps(merged); };
    return item;
  }

  std::string Fact(Draws& draws) const override {
    Expression expression = Expression::Draw(draws, 1);
    return expression.Text() + '=' + Bit(expression.Value());
  }
};

}  // namespace

std::unique_ptr<Family> MakeLogicFamily() { return std::make_unique<LogicFamily>(); }

}  // namespace hone::data
