#include <algorithm>

#include "data/families/family.h"

namespace hone::data {
namespace {

int64_t PowerOfTen(int exponent) {
  int64_t power = 1;
  while (exponent-- > 0) power *= 10;
  return power;
}

// One step over a block of `width` digits. The carry of a sum, or the borrow of a difference, comes
// from the block to the right and goes on to the one to the left.
std::string BlockStep(int64_t a, int64_t b, bool add, int width, bool leftmost, int64_t* carry) {
  int64_t base = PowerOfTen(width);
  int64_t left = a;
  bool borrow = !add && a - b - *carry < 0 && !leftmost;
  if (borrow) left += base;
  std::string text = std::to_string(left) + (add ? '+' : '-') + std::to_string(b);
  if (*carry != 0) text += add ? "+1" : "-1";
  int64_t result = add ? left + b + *carry : left - b - *carry;
  *carry = add ? result / base : borrow;
  return text + '=' + std::to_string(result);
}

std::vector<std::string> BlockSteps(int64_t a, int64_t b, bool add,
                                    const std::vector<bool>& merged) {
  std::vector<std::string> steps;
  int64_t carry = 0;
  int width = 0, digits = static_cast<int>(merged.size()) + 1;
  for (int digit = 0; digit < digits; ++digit) {
    ++width;
    bool leftmost = digit + 1 == digits;
    if (!leftmost && merged[static_cast<size_t>(digit)]) continue;
    int64_t base = PowerOfTen(width);
    steps.push_back(BlockStep(a % base, b % base, add, width, leftmost, &carry));
    a /= base;
    b /= base;
    width = 0;
  }
  return steps;
}

class ArithmeticFamily : public Family {
 public:
  std::string_view name() const override { return "arithmetic"; }
  int min_level() const override { return 1; }
  int max_level() const override { return 9; }

  Item Draw(Draws& draws, int level, const std::string&) const override {
    int64_t a = Number(draws, level), b = Number(draws, level);
    bool add = draws.Chance(0.5);
    if (!add && a < b) std::swap(a, b);
    Item item;
    item.expression = std::to_string(a) + (add ? '+' : '-') + std::to_string(b) + '=';
    item.answer = std::to_string(add ? a + b : a - b);
    item.joints = level - 1;
    item.steps = [a, b, add](const std::vector<bool>& merged) {
      return BlockSteps(a, b, add, merged);
    };
    return item;
  }

  std::string Fact(Draws& draws) const override {
    bool add = draws.Chance(0.5);
    int64_t a = draws.Range(0, 9), b = draws.Range(0, 9), carry = draws.Range(0, 1);
    return BlockStep(a, b, add, 1, false, &carry);
  }

 private:
  static int64_t Number(Draws& draws, int digits) {
    int64_t low = digits == 1 ? 0 : PowerOfTen(digits - 1);
    return low + static_cast<int64_t>(draws.Below(static_cast<uint64_t>(PowerOfTen(digits) - low)));
  }
};

}  // namespace

std::unique_ptr<Family> MakeArithmeticFamily() { return std::make_unique<ArithmeticFamily>(); }

}  // namespace hone::data
