#include "launcher/plan_report.h"

#include <nlohmann/json.hpp>

namespace hone::launcher {
namespace {

using Json = nlohmann::ordered_json;
using rl::GigaBytes;
using rl::RankMemory;

std::string WithCommas(int64_t n) {
  const std::string digits = std::to_string(n);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

// "37.55B", "411.14K"
std::string Rounded(double n) {
  for (const auto& [unit, letter] : {std::pair{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "K"}}) {
    if (n >= unit) return fmt::format("{:.2f}{}", n / unit, letter);
  }
  return fmt::format("{:.0f}", n);
}

std::string Parameters(const model::ModelConfig& m) {
  const int64_t base = m.ParameterCount(false), mtp = m.ParameterCount(true) - base;
  std::string text = fmt::format(
      "{}: {} parameters", model::FamilyNames()[static_cast<size_t>(m.family)], WithCommas(base));
  if (mtp > 0) text += fmt::format(", and {} in the prediction layer", WithCommas(mtp));
  return text + fmt::format("\n  active a token: {}, {} without the embedding\n",
                            Rounded(static_cast<double>(m.ActiveParameterCount(true))),
                            Rounded(static_cast<double>(m.ActiveParameterCount(false))));
}

// Categories that some rank has any of.
std::vector<MemoryCategory> Columns(const std::vector<RankMemory>& ranks) {
  std::vector<MemoryCategory> columns;
  for (int i = 0; i < runtime::kMemoryCategoryCount; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    bool any = false;
    for (const RankMemory& rank : ranks) any = any || rank[category] > 0;
    if (any) columns.push_back(category);
  }
  return columns;
}

std::string MemoryTable(const std::vector<RankMemory>& ranks, const rl::Layout& layout,
                        int64_t rank_bytes) {
  const std::vector<MemoryCategory> columns = Columns(ranks);
  std::string text = fmt::format("  {:<14}", "ranks");
  for (MemoryCategory c : columns) text += fmt::format("{:>15}", MemoryCategoryName(c));
  text += fmt::format("{:>12}{}{:>11}\n", "peak",
                      rank_bytes > 0 ? fmt::format("{:>12}", "left") : "", "in flight");
  for (size_t r = 0; r < ranks.size(); ++r) {
    const int64_t first = static_cast<int64_t>(r) * layout.mesh.dp;
    const std::string which = layout.mesh.dp == 1
                                  ? fmt::format("{}", first)
                                  : fmt::format("{}-{}", first, first + layout.mesh.dp - 1);
    text += fmt::format("  {:<14}", which);
    for (MemoryCategory c : columns) text += fmt::format("{:>15}", GigaBytes(ranks[r][c]));
    text += fmt::format("{:>12}", GigaBytes(ranks[r].total));
    if (rank_bytes > 0) {
      const int64_t left = rank_bytes - ranks[r].total;
      text +=
          fmt::format("{:>12}", left < 0 ? fmt::format("-{}", GigaBytes(-left)) : GigaBytes(left));
    }
    text += fmt::format("{:>11}\n", ranks[r].in_flight);
  }
  for (const RankMemory& rank : ranks) {
    if (rank.host_optimizer + rank.host_weights == 0) continue;
    text += fmt::format("  rank {} keeps in its host's memory: optimizer {}, reference {}\n",
                        (&rank - ranks.data()) * layout.mesh.dp, GigaBytes(rank.host_optimizer),
                        GigaBytes(rank.host_weights));
  }
  return text;
}

std::string StepText(const rl::StagePlan& stage) {
  const rl::StepEstimate& e = stage.estimate;
  const rl::StepTraffic& t = e.traffic;
  auto bytes = [](double b) { return GigaBytes(static_cast<int64_t>(b)); };
  std::string text = fmt::format(
      "  bubble: {:.1f} % of the schedule ({:.3g} s on the rank that idles longest)\n"
      "  sent by a rank a step: gradients {}, weights {}, pipeline {}, experts {}, tied {}\n",
      100 * e.bubble, e.bubble_seconds, bytes(t.gradients), bytes(t.weights), bytes(t.pipeline),
      bytes(t.experts), bytes(t.tied));
  return text + fmt::format(
                    "  step: {:.3g} s (schedule {:.3g}, reduction not covered {:.3g}, gathering "
                    "{:.3g}, optimizer {:.3g}); {} tokens/s\n",
                    e.seconds, e.schedule_seconds, e.reduce_seconds, e.gather_seconds,
                    e.optimizer_seconds, Rounded(e.tokens_per_second));
}

std::string FitText(const PlanReport& r) {
  if (r.rank_bytes == 0) return "";
  const int64_t left = r.rank_bytes - r.plan.PeakBytes();
  return left >= 0 ? fmt::format("It fits: the fullest rank leaves {} of {} free.\n",
                                 GigaBytes(left), GigaBytes(r.rank_bytes))
                   : fmt::format("It does not fit: the fullest rank needs {} more than {}.\n",
                                 GigaBytes(-left), GigaBytes(r.rank_bytes));
}

std::string SuggestionText(const PlanReport& r, size_t most) {
  if (r.suggestions.empty()) {
    return fmt::format("No layout of {} ranks fits into {}.\n", r.plan.layout.mesh.ranks(),
                       GigaBytes(r.rank_bytes));
  }
  std::string text = fmt::format(
      "Layouts of {} ranks{}, best first ({} in all):\n  {:<46}{:>12}{:>10}{:>14}{:>12}\n",
      r.plan.layout.mesh.ranks(),
      r.rank_bytes > 0 ? fmt::format(" that fit into {}", GigaBytes(r.rank_bytes)) : "",
      r.suggestions.size(), "", "peak", "bubble", "step", "tokens/s");
  for (size_t i = 0; i < std::min(most, r.suggestions.size()); ++i) {
    const rl::Suggestion& s = r.suggestions[i];
    const std::string name = s.layout.ToString();
    size_t columns = 0;  // a dot in the middle is two bytes
    for (unsigned char c : name) columns += (c & 0xc0) != 0x80;
    text += fmt::format("  {}{}{:>12}{:>8.1f} %{:>12.3g} s{:>12}\n", name,
                        std::string(46 > columns ? 46 - columns : 1, ' '), GigaBytes(s.peak_bytes),
                        100 * s.bubble, s.step_seconds, Rounded(s.tokens_per_second));
  }
  return text;
}

Json MemoryJson(const RankMemory& memory) {
  Json json;
  for (int i = 0; i < runtime::kMemoryCategoryCount; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    json[std::string(MemoryCategoryName(category))] = memory[category];
  }
  json["total"] = memory.total;
  json["host_optimizer"] = memory.host_optimizer;
  json["host_weights"] = memory.host_weights;
  return json;
}

Json LayoutJson(const rl::Layout& layout) {
  return {{"pp", layout.mesh.pp},
          {"dp", layout.mesh.dp},
          {"ep", layout.mesh.ep},
          {"schedule", ScheduleName(layout.pipeline.schedule)},
          {"chunks", layout.pipeline.chunks_per_rank()},
          {"activation_checkpointing", layout.activation_checkpointing}};
}

Json StageJson(const rl::StagePlan& stage, const rl::Layout& layout) {
  Json json = {{"name", stage.name},
               {"kind", stage.kind},
               {"microbatch_tokens", stage.step.tokens},
               {"microbatches", stage.step.microbatches},
               {"ranks", Json::array()}};
  for (size_t r = 0; r < stage.ranks.size(); ++r) {
    Json rank = {{"first", static_cast<int64_t>(r) * layout.mesh.dp}, {"count", layout.mesh.dp}};
    rank["bytes"] = MemoryJson(stage.ranks[r]);
    rank["in_flight"] = stage.ranks[r].in_flight;
    json["ranks"].push_back(rank);
  }
  const rl::StepEstimate& e = stage.estimate;
  json["bubble"] = e.bubble;
  json["traffic_bytes"] = {{"gradients", e.traffic.gradients},
                           {"weights", e.traffic.weights},
                           {"pipeline", e.traffic.pipeline},
                           {"experts", e.traffic.experts},
                           {"tied", e.traffic.tied}};
  json["step_seconds"] = e.seconds;
  json["tokens_per_second"] = e.tokens_per_second;
  return json;
}

}  // namespace

std::string PlanText(const PlanReport& r, size_t suggestions) {
  const rl::Layout& layout = r.plan.layout;
  std::string text = Parameters(r.config.model);
  text += fmt::format("Machine model: {}\n", r.machine.ToString());
  if (!r.note.empty()) text += r.note + "\n";
  text +=
      fmt::format("Layout: {} on {} ranks; weights {}, gradients and master {}, moments {}\n",
                  layout.ToString(), layout.mesh.ranks(), runtime::DTypeName(layout.dtype),
                  layout.dtype == DType::kF64 ? "f64" : "f32", runtime::DTypeName(layout.moments));
  for (const rl::StagePlan& stage : r.plan.stages) {
    text += fmt::format("\nstage '{}' ({}): {} microbatches of {} tokens a replica and step\n",
                        stage.name, stage.kind, stage.step.microbatches, stage.step.tokens);
    text += MemoryTable(stage.ranks, layout, r.rank_bytes) + StepText(stage);
  }
  if (r.config.rollout.workers > 0) {
    const RankMemory worker = EstimateWorkerMemory(r.config);
    text += fmt::format(
        "\nA rollout worker: weights {}, keys and values {}{}\n",
        GigaBytes(worker[MemoryCategory::kWeights]), GigaBytes(worker[MemoryCategory::kKvCache]),
        r.config.rollout.colocated ? "; counted above, where it takes turns with a learner rank"
                                   : "");
  }
  return text + "\n" + FitText(r) + SuggestionText(r, suggestions);
}

Json PlanJson(const PlanReport& r) {
  const model::ModelConfig& m = r.config.model;
  Json json;
  json["parameters"] = {{"total", m.ParameterCount(false)},
                        {"prediction_layer", m.ParameterCount(true) - m.ParameterCount(false)},
                        {"active", m.ActiveParameterCount(true)},
                        {"active_without_embedding", m.ActiveParameterCount(false)}};
  json["machine"] = r.machine.ToString();
  json["rank_bytes"] = r.rank_bytes;
  json["layout"] = LayoutJson(r.plan.layout);
  json["peak_bytes"] = r.plan.PeakBytes();
  if (r.rank_bytes > 0) json["fits"] = r.plan.PeakBytes() <= r.rank_bytes;
  json["stages"] = Json::array();
  for (const rl::StagePlan& stage : r.plan.stages) {
    json["stages"].push_back(StageJson(stage, r.plan.layout));
  }
  json["worker_bytes"] = MemoryJson(EstimateWorkerMemory(r.config));
  json["layouts"] = Json::array();
  for (const rl::Suggestion& s : r.suggestions) {
    Json entry = LayoutJson(s.layout);
    entry["peak_bytes"] = s.peak_bytes;
    entry["bubble"] = s.bubble;
    entry["step_seconds"] = s.step_seconds;
    entry["tokens_per_second"] = s.tokens_per_second;
    json["layouts"].push_back(entry);
  }
  return json;
}

}  // namespace hone::launcher
