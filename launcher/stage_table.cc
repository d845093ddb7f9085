#include "launcher/stage_table.h"

#include <fmt/core.h>

#include <cmath>

namespace hone::launcher {
namespace {

std::string Number(const rl::EvaluationScores& scores, const std::string& name, int digits) {
  auto it = scores.find(name);
  return it == scores.end() ? "–" : fmt::format("{:.{}f}", it->second, digits);
}

std::string WithError(const rl::EvaluationScores& scores, const std::string& name) {
  if (!scores.count(name)) return "–";
  return fmt::format("{:.3f} ± {}", scores.at(name), Number(scores, name + "_se", 3));
}

// A dash is three bytes and one column.
std::string Pad(const std::string& text, size_t width) {
  size_t columns = 0;
  for (unsigned char c : text) columns += (c & 0xc0) != 0x80;
  return text + std::string(width > columns ? width - columns : 1, ' ');
}

}  // namespace

std::string StageTable(const rl::RunState& state) {
  std::string out = Pad("stage", 18) + Pad("state", 9) + Pad("steps", 8) + Pad("tokens", 12) +
                    Pad("seconds", 9) + Pad("suite", 12) + Pad("greedy", 16) + Pad("sampled", 16) +
                    Pad("format", 8) + Pad("language", 10) + "thinking\n";
  for (const rl::StageRecord& s : state.stages) {
    std::string head = Pad(s.name, 18) + Pad(s.state, 9) + Pad(std::to_string(s.step), 8) +
                       Pad(std::to_string(s.tokens), 12) + Pad(fmt::format("{:.1f}", s.seconds), 9);
    if (s.evaluations.empty()) out += head + "\n";
    for (const auto& [suite, scores] : s.evaluations) {
      head += Pad(suite, 12);
      if (scores.count("loss")) {  // of a text
        out += head + "loss " + Number(scores, "loss", 4) + "\n";
        head = std::string(56, ' ');
        continue;
      }
      out += head + Pad(WithError(scores, "greedy_accuracy"), 16) +
             Pad(WithError(scores, "sampled_accuracy"), 16) + Pad(Number(scores, "format", 3), 8) +
             Pad(Number(scores, "language", 3), 10) + Number(scores, "thinking_tokens", 1) + "\n";
      head = std::string(56, ' ');
    }
  }
  return out;
}

}  // namespace hone::launcher
