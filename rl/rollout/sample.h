// A rollout sample: what was drawn, by which weights, and what it was worth.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace hone::rl {

enum class TokenSource : uint8_t { kPrompt, kModel, kEnvironment };
enum class FinishReason : uint8_t { kStop, kLength, kCancelled };
// What a verifier said. Each is counted apart; a failure is never a silent zero.
enum class Outcome : uint8_t { kCorrect, kWrong, kUnparseable, kTimeout, kCrashed, kRefused };
std::string_view OutcomeName(Outcome outcome);
inline constexpr int kOutcomeCount = 6;

struct SampleToken {
  int32_t id = 0;
  TokenSource source = TokenSource::kModel;
  float logp = 0;              // of softmax(z / T), untruncated; 0 for tokens not sampled
  int64_t weight_version = 0;  // the weights that drew it; 0 for tokens not sampled
};

// Names one sample for ever: repeats of the same key are the same sample.
struct SampleKey {
  std::string stage;
  int64_t rollout = 0, prompt = 0, sample = 0;
  auto operator<=>(const SampleKey&) const = default;
};

struct Sample {
  SampleKey key;
  std::string problem_id;
  std::vector<SampleToken> tokens;  // prompt first
  double temperature = 1;
  FinishReason finish = FinishReason::kStop;
  Outcome outcome = Outcome::kWrong;
  std::map<std::string, double> rewards;  // parts, unweighted: "accuracy" "format" "language" …
  std::vector<int32_t> routing_TLK;       // of every token but the last, when recorded
  std::string text;                       // the completion, decoded

  int64_t prompt_tokens() const;
  int64_t completion_tokens() const {
    return static_cast<int64_t>(tokens.size()) - prompt_tokens();
  }
};

}  // namespace hone::rl
