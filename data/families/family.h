// Generated task families: problems of graded difficulty with a checkable answer and worked
// reasoning.
//
// An item's reasoning is a list of steps. Between one step and a later one that uses its result
// lies a *joint*; merging a joint leaves the first step out and writes its operation, unevaluated,
// into the step that uses it. No joint merged is *fine* thinking, some merged is *coarse*: shorter
// and harder.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/task.h"
#include "runtime/philox.h"

namespace hone::data {

// Successive draws from one stream.
class Draws {
 public:
  explicit Draws(RandomStream stream) : stream_(stream) {}
  uint64_t Below(uint64_t n) { return stream_.Below(n, position_++); }
  int Range(int low, int high) {  // both included
    return low + static_cast<int>(Below(static_cast<uint64_t>(high - low + 1)));
  }
  bool Chance(double probability) { return stream_.Uniform(position_++) < probability; }
  template <class T>
  const T& Pick(const std::vector<T>& from) {
    return from[static_cast<size_t>(Below(from.size()))];
  }

 private:
  RandomStream stream_;
  uint64_t position_ = 0;
};

struct Item {
  std::string expression;  // the problem without a language: what the train/held-out split hashes
  std::string answer;
  int joints = 0;
  // The step texts, without language words; merged.size() == joints.
  std::function<std::vector<std::string>(const std::vector<bool>& merged)> steps;
  // What an SFT text answers when it does not answer well; empty: always the answer.
  std::string careless_answer;
};

class Family {
 public:
  virtual ~Family() = default;
  virtual std::string_view name() const = 0;
  virtual int min_level() const = 0;
  virtual int max_level() const = 0;
  virtual std::string_view verifier() const { return "exact"; }
  virtual std::string_view kind() const { return "reasoning"; }
  virtual std::string Prefix(const std::string& language) const;
  // Whether its items have an answer to learn from; else they are prompts only.
  virtual bool solves() const { return true; }
  virtual Item Draw(Draws& draws, int level, const std::string& language) const = 0;
  // One step by itself, for drills.
  virtual std::string Fact(Draws& draws) const = 0;
};

// Digits, `level` operations from + - * with operands 2–9, from left to right, mod 10. Each
// operation carries a label (@ # $ % &) that its step repeats: "2@*3#-4=" → "2@*3=6", "6#-4=2".
std::unique_ptr<Family> MakeChainFamily();
// The sum or difference of two numbers of `level` digits, worked digit by digit from the right,
// with the carry or the borrow: "478+596=" → "8+6=14", "7+9+1=17", "4+5+1=10".
std::unique_ptr<Family> MakeArithmeticFamily();
// `level` operations & | ^ on 0 and 1 in parentheses: "(1&0)|1=" → "1&0=0", "0|1=1".
std::unique_ptr<Family> MakeLogicFamily();
// Everyday requests that a simple rule can score: say a number, say it backwards, welcome somebody
// by name (politely, which a careless answer is not). `level` is the number's length.
std::unique_ptr<Family> MakeGeneralFamily(std::vector<std::string> tasks);

const std::vector<std::string>& FamilyNames();
const std::vector<std::string>& GeneralTaskNames();
const std::vector<std::string>& GeneratedLanguages();  // en ko zh
// The word that begins each step: "so ", "즉", "故".
std::string StepWord(const std::string& language);

// The config keys are documented in docs/data.md.
std::unique_ptr<ProblemSource> MakeGeneratedProblems(ConfigReader& config, uint64_t seed);
std::unique_ptr<ExampleSource> MakeGeneratedExamples(ConfigReader& config, uint64_t seed);
std::unique_ptr<PreferenceSource> MakeGeneratedPreferences(ConfigReader& config, uint64_t seed);

}  // namespace hone::data
