#include "rl/rollout/sample.h"

namespace hone::rl {

std::string_view OutcomeName(Outcome outcome) {
  static constexpr std::string_view kNames[kOutcomeCount] = {"correct", "wrong",   "unparseable",
                                                             "timeout", "crashed", "refused"};
  return kNames[static_cast<int>(outcome)];
}

int64_t Sample::prompt_tokens() const {
  int64_t n = 0;
  while (n < static_cast<int64_t>(tokens.size()) && tokens[n].source == TokenSource::kPrompt) ++n;
  return n;
}

}  // namespace hone::rl
