#include "data/families/family.h"

namespace hone::data {
namespace {

constexpr std::string_view kLabels = "@#$%&", kOperations = "+-*";

struct Operation {
  char label, sign;
  int operand;
};

int Apply(int value, const Operation& operation) {
  int result = operation.sign == '+'   ? value + operation.operand
               : operation.sign == '-' ? value - operation.operand
                                       : value * operation.operand;
  return (result % 10 + 10) % 10;
}
std::string Text(const Operation& operation) {
  return {operation.label, operation.sign, static_cast<char>('0' + operation.operand)};
}
Operation DrawOperation(Draws& draws, char label) {
  return {label, kOperations[draws.Below(kOperations.size())], draws.Range(2, 9)};
}

class ChainFamily : public Family {
 public:
  std::string_view name() const override { return "chain"; }
  int min_level() const override { return 1; }
  int max_level() const override { return static_cast<int>(kLabels.size()); }

  Item Draw(Draws& draws, int level, const std::string&) const override {
    int start = draws.Range(0, 9), value = start;
    std::vector<Operation> operations;
    Item item;
    item.expression = std::to_string(start);
    for (int i = 0; i < level; ++i) {
      operations.push_back(DrawOperation(draws, kLabels[static_cast<size_t>(i)]));
      item.expression += Text(operations.back());
      value = Apply(value, operations.back());
    }
    item.expression += '=';
    item.answer = std::to_string(value);
    item.joints = level - 1;
    item.steps = [start, operations](const std::vector<bool>& merged) {
      std::vector<std::string> steps;
      int result = start;
      std::string text = std::to_string(start);
      for (size_t i = 0; i < operations.size(); ++i) {
        text += Text(operations[i]);
        result = Apply(result, operations[i]);
        if (i < merged.size() && merged[i]) continue;
        steps.push_back(text + '=' + std::to_string(result));
        text = std::to_string(result);
      }
      return steps;
    };
    return item;
  }

  std::string Fact(Draws& draws) const override {
    int value = draws.Range(0, 9);
    Operation operation = DrawOperation(draws, kLabels[draws.Below(kLabels.size())]);
    return std::to_string(value) + Text(operation) + '=' + std::to_string(Apply(value, operation));
  }
};

}  // namespace

std::unique_ptr<Family> MakeChainFamily() { return std::make_unique<ChainFamily>(); }

}  // namespace hone::data
