// Turns with an environment: while it thinks, a model may write a call, and is answered.
//
//   <tool>12*7</tool>          drawn by the model; drawing stops here
//   <result>84</result>        the environment's tokens: read, but neither drawn nor learned from
// Then the model goes on. What is to happen next can be told from a sample's tokens alone, so a
// sample that was given back between two turns goes on anywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/config.h"

namespace hone::rl {

// Names of environments:
//   calculator   + - * / ( ) on integers, exactly: "7/2" where a quotient is no integer; "error"
//                for what it cannot read or would overflow 64 bits
const std::vector<std::string>& EnvironmentNames();

struct EnvironmentConfig {
  std::string name;  // of EnvironmentNames(); "": none
  std::string call_begin = "<tool>", call_end = "</tool>";
  std::string answer_begin = "<result>", answer_end = "</result>";
  int64_t max_calls = 8;  // of one sample; with one more it ends, as cut

  bool defined() const { return !name.empty(); }
  void Read(ConfigReader& reader);
};

// The unanswered call in `text`, which is what the model wrote since the last answer: what stands
// between the marks, or all of it when the first mark is missing.
std::optional<std::string> CallIn(const EnvironmentConfig& config, std::string_view text);
// What `environment` answers, without marks. A pure function. ConfigError on another name.
std::string AnswerCall(const std::string& environment, const std::string& call);
// As the model reads it.
std::string WithMarks(const EnvironmentConfig& config, const std::string& answer);

}  // namespace hone::rl
