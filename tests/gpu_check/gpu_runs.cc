// Whole runs, for tests/gpu_check/gpu_check: configs/r1_tiny.yaml up to twenty steps of reasoning
// RL, by `hone run` with its learner and worker, once for each precision, mode of numerics and way
// to share the device; and what their metrics.jsonl say beside each other, one JSON object a line:
//   {"name", "value", "unit", "wanted"}, and "outcome" where it is not "measured".
// A run that is out of time is ended, and counts as far as it came. `--device cpu --small` does the
// same in seconds where there is no GPU; its figures mean nothing.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "launcher/child_process.h"

namespace hone::launcher {
namespace {

using Words = std::vector<std::string>;
using Curve = std::vector<double>;  // a metric, step by step
using Clock = std::chrono::steady_clock;

constexpr char kPretraining[] = "skill", kRl[] = "reasoning_rl";
constexpr int kDigestBytes = 16;

// A model and stages for a test. All its rewards are the same: entropy alone moves the policy.
constexpr char kSmall[] = R"(
  model.hidden_size=32 model.intermediate_size=48 model.moe_intermediate_size=16
  model.num_attention_heads=1 model.kv_lora_rank=16 model.qk_nope_head_dim=16
  model.qk_rope_head_dim=16 model.v_head_dim=16 model.n_routed_experts=2
  stages.skill.steps=3 stages.skill.batch.packs=1 stages.skill.batch.pack_tokens=96
  stages.base.steps=1 stages.base.batch.packs=1 stages.base.batch.pack_tokens=96
  stages.cold_start.epochs=1 stages.cold_start.data.count=1
  stages.cold_start.batch.packs=1 stages.cold_start.batch.pack_tokens=96
  stages.reasoning_rl.steps=3 stages.reasoning_rl.batch.pack_tokens=96
  stages.reasoning_rl.prompts_per_rollout=1 stages.reasoning_rl.group_size=2
  stages.reasoning_rl.max_unusable=1 stages.reasoning_rl.sampling.max_new_tokens=4
  stages.reasoning_rl.loss.entropy_coefficient=0.1)";

struct Setup {
  std::string hone, config, folder, device = "cuda";
  bool small = false;
  int seconds = 240;  // for all runs together
  Words only;         // these runs; empty: all
};

struct Run {
  std::string name;
  Words settings;
  double weight = 1;                       // of its share of the time
  std::vector<nlohmann::json> steps = {};  // of metrics.jsonl
};

Words SettingsOfAll(const Setup& setup) {
  Words words = {"mesh.dp=1",
                 "mesh.ep=1",
                 "rollout.workers=1",
                 "evaluate.after=never",
                 "train.numerics=fast",
                 "train.device=" + setup.device,
                 "rollout.device=" + setup.device,
                 "stages.skill.until.every=1000000",
                 "stages.skill.steps=300",
                 "stages.base.steps=100",
                 "stages.reasoning_rl.steps=20"};
  std::istringstream small(setup.small ? kSmall : "");
  words.insert(words.end(), std::istream_iterator<std::string>(small), {});
  return words;
}

void Report(const std::string& name, double value, const std::string& unit,
            const std::string& wanted = "") {
  nlohmann::json row = {{"name", name}, {"value", value}, {"unit", unit}, {"wanted", wanted}};
  if (!std::isfinite(value)) {
    row.update({{"outcome", "not run"}, {"value", ""}, {"unit", "no finite values"}});
  }
  std::cout << row.dump() << std::endl;
}

std::vector<nlohmann::json> ReadSteps(const std::string& path) {
  std::vector<nlohmann::json> steps;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    nlohmann::json step = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!step.is_discarded()) steps.push_back(std::move(step));  // the last may be torn
  }
  return steps;
}

std::string FolderOf(const Setup& setup, const Run& run) { return setup.folder + "/" + run.name; }

void AddSettings(const Setup& setup, const Run& run, Words& command) {
  for (const Words& settings : {SettingsOfAll(setup), run.settings}) {
    for (const std::string& word : settings) command.insert(command.end(), {"--set", word});
  }
}

// False when it ended with an error.
bool Execute(const Setup& setup, Run& run, double seconds) {
  const std::string folder = FolderOf(setup, run);
  std::filesystem::remove_all(folder);  // else `hone run` goes on where the last one stood
  std::filesystem::remove(folder + ".log");
  Words command = {setup.hone, "run", setup.config,         "--run-dir", folder,
                   "--until",  kRl,   "--learner-restarts", "0"};
  AddSettings(setup, run, command);
  ChildProcess hone({command, {}, folder + ".log"});
  const auto begin = Clock::now();
  auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  while (!hone.Ended() && elapsed() < seconds) {
    hone.Drain();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const bool late = !hone.Ended();
  if (late) {
    for (pid_t child : hone.Children()) kill(-child, SIGKILL);  // they may be deaf to less
  }
  run.steps = ReadSteps(folder + "/metrics.jsonl");
  const bool failed = !late && hone.exit_code() != 0;
  nlohmann::json row = {{"name", "r1_tiny." + run.name},
                        {"value", run.steps.size()},
                        {"unit", fmt::format("steps in {:.0f} s", elapsed())},
                        {"wanted", ""}};
  if (late) row["unit"] = fmt::format("steps, then out of time after {:.1f} s", seconds);
  if (failed) row.update({{"outcome", "FAILED"}, {"unit", "steps; see runs/" + run.name + ".log"}});
  std::cout << row.dump() << std::endl;
  return !failed;
}

Curve CurveOf(const Run& run, const std::string& stage, const std::string& key) {
  Curve curve;
  for (const nlohmann::json& step : run.steps) {
    if (step.at("stage") != stage || !step.contains(key)) continue;
    const nlohmann::json& value = step.at(key);  // null: not finite
    curve.push_back(value.is_number() ? value.get<double>() : std::nan(""));
  }
  return curve;
}

// Not a number where there are no values.
double Mean(const Curve& curve, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += curve[i];
  return sum / static_cast<double>(end - begin);
}
double Mean(const Curve& curve) { return Mean(curve, 0, curve.size()); }

double Largest(const Curve& curve) {
  double largest = curve.empty() ? std::nan("") : 0;
  for (double value : curve) {
    if (!(std::abs(value) <= largest)) largest = std::abs(value);
    if (std::isnan(value)) return value;
  }
  return largest;
}

double Median(Curve curve) {
  if (curve.empty()) return std::nan("");
  std::nth_element(curve.begin(), curve.begin() + static_cast<int64_t>(curve.size() / 2),
                   curve.end());
  return curve[curve.size() / 2];
}

// The differences of two curves as far as both go: of their means over tenths, since single steps
// of runs that differ at all are noise; or of each step.
Curve Differences(const Curve& a, const Curve& b, size_t pieces = 10) {
  const size_t steps = std::min(a.size(), b.size());
  pieces = std::min(pieces, steps);
  Curve differences;
  for (size_t i = 0; i < pieces; ++i) {
    const size_t begin = steps * i / pieces, end = steps * (i + 1) / pieces;
    differences.push_back(Mean(a, begin, end) - Mean(b, begin, end));
  }
  return differences;
}
constexpr size_t kEachStep = std::numeric_limits<size_t>::max();

Curve Loss(const Run& run) { return CurveOf(run, kPretraining, "loss"); }
Curve Reward(const Run& run) { return CurveOf(run, kRl, "reward"); }

std::string AtMost(double bound) {
  return std::isnan(bound) ? "" : fmt::format("<= {:.4g}", bound);
}

double LossApart(const Run& a, const Run& b) { return Largest(Differences(Loss(a), Loss(b))); }
double RewardApart(const Run& a, const Run& b) {
  return Largest(Differences(Reward(a), Reward(b)));
}

// Curves of other precisions may be as far from f32's as those of its seeds are from each other.
void ReportCurves(const std::vector<const Run*>& seeds, const std::vector<const Run*>& others) {
  auto report = [&](const Run& run) {
    const Curve loss = Loss(run);
    const std::string name = "r1_tiny." + run.name;
    Report(name + ".loss", Mean(loss, loss.size() * 9 / 10, loss.size()), "the last tenth's");
    Report(name + ".reward", Mean(Reward(run)), "all steps'");
  };
  Curve loss_noise, reward_noise;
  for (size_t i = 0; i < seeds.size(); ++i) {
    report(*seeds[i]);
    for (size_t j = 0; j < i; ++j) {
      loss_noise.push_back(LossApart(*seeds[i], *seeds[j]));
      reward_noise.push_back(RewardApart(*seeds[i], *seeds[j]));
    }
  }
  for (Curve* noise : {&loss_noise, &reward_noise}) {  // of those that came so far
    std::erase_if(*noise, [](double apart) { return std::isnan(apart); });
  }
  const double loss_bound = Largest(loss_noise), reward_bound = Largest(reward_noise);
  Report("r1_tiny.seeds.loss_apart", loss_bound, "largest distance of two");
  Report("r1_tiny.seeds.reward_apart", reward_bound, "largest distance of two");
  const Run& f32 = *seeds[0];
  for (const Run* run : others) {
    report(*run);
    const std::string name = "r1_tiny." + run->name;
    Report(name + ".loss_apart", LossApart(*run, f32), "largest distance from f32",
           AtMost(loss_bound));
    Report(name + ".reward_apart", RewardApart(*run, f32), "largest distance from f32",
           AtMost(reward_bound));
  }
}

void ReportGap(const Run& run, const std::string& wanted) {
  const std::string name = "r1_tiny." + run.name + ".logprob_gap";
  Report(name + ".mean", Mean(CurveOf(run, kRl, "logprob_gap")), "of all tokens", wanted);
  Report(name + ".largest", Largest(CurveOf(run, kRl, "largest_logprob_gap")), "of a token",
         wanted);
}

void ReportCost(const std::string& name, const Run& run, const Run& than) {
  for (const char* stage : {kPretraining, kRl}) {
    const double a = Median(CurveOf(run, stage, "seconds"));
    const double b = Median(CurveOf(than, stage, "seconds"));
    Report(fmt::format("{}.{}.time", name, stage), a / b, "times " + than.name + "'s");
  }
}

// One object of JSON; empty where there is none.
nlohmann::json ReadObject(const std::string& path) {
  std::ifstream in(path);
  nlohmann::json json = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : nlohmann::json::object();
}

// What `hone plan` says of a run.
nlohmann::json Plan(const Setup& setup, const Run& run) {
  const std::string file = FolderOf(setup, run) + ".plan.json";
  std::filesystem::remove(file);
  Words command = {setup.hone, "plan", setup.config, "--json"};
  AddSettings(setup, run, command);
  {
    ChildProcess hone({command, {}, file});
    const auto end = Clock::now() + std::chrono::seconds(30);
    while (!hone.Ended() && Clock::now() < end) {
      hone.Drain();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    hone.Drain();
  }  // the file is whole when its writer is gone
  return ReadObject(file);
}

// The most that the learner's allocator held, of what was planned.
void ReportPeaks(const Setup& setup, const Run& run) {
  const nlohmann::json summary = ReadObject(FolderOf(setup, run) + "/summary.json");
  const nlohmann::json plan = summary.empty() ? summary : Plan(setup, run);
  for (const char* stage : {kPretraining, kRl}) {
    double measured = std::nan(""), planned = std::nan("");
    for (const nlohmann::json& s : plan.value("stages", nlohmann::json::array())) {
      if (s.at("name") == stage) planned = s.at("ranks").at(0).at("bytes").at("total");
    }
    for (const nlohmann::json& s : summary.value("stages", nlohmann::json::array())) {
      if (s.at("name") != stage || s.at("peak_bytes").empty()) continue;  // it did not end
      measured = s.at("peak_bytes").at(0).at("total");
    }
    Report(fmt::format("r1_tiny.{}.{}.peak", run.name, stage), measured / planned,
           fmt::format("of the planned {:.0f} bytes", planned), "<= 1.1");
  }
}

// Workers and learner take turns with the device, and weights go from one to the other on it.
void ReportTurns(const Run& turns, const Run& plain) {
  for (const char* stage : {kPretraining, kRl}) {
    Report(fmt::format("turns.{}.apart", stage),
           Largest(Differences(CurveOf(turns, stage, "loss"), CurveOf(plain, stage, "loss"),
                               kEachStep)),
           "largest distance of losses", "0");
  }
  // A publication's digest is made by the learner and by the worker, whose share is known a little
  // later.
  const Curve bytes = CurveOf(turns, kRl, "weight_host_bytes");  // so far
  Report("publication.host_bytes", bytes.empty() ? std::nan("") : bytes.back(),
         fmt::format("bytes, {} publications", bytes.size()),
         bytes.empty() ? "" : fmt::format("<= {}", 2 * kDigestBytes * bytes.size()));
  for (const Run* run : {&turns, &plain}) {
    Report("publication." + run->name + ".time",
           1e3 * Median(CurveOf(*run, kRl, "publish_seconds")), "ms, the learner's part");
  }
}

int Main(int argc, char** argv) {
  Setup setup;
  CLI::App app("What runs in each precision and mode say beside each other", "gpu_runs");
  app.add_option("--hone", setup.hone, "the program")->required();
  app.add_option("--config", setup.config, "configs/r1_tiny.yaml")->required();
  app.add_option("--folder", setup.folder, "where run directories are made")->required();
  app.add_option("--device", setup.device)->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--seconds", setup.seconds, "for all runs together");
  app.add_option("--only", setup.only, "these runs, by name")->delimiter(',');
  app.add_flag("--small", setup.small, "a tiny model, few steps: a test of this program");
  CLI11_PARSE(app, argc, argv);
  std::filesystem::create_directories(setup.folder);

  Run f32{"f32", {"train.dtype=f32"}};
  Run seed_2{"f32_seed_2", {"train.dtype=f32", "run.seed=2"}};
  Run seed_3{"f32_seed_3", {"train.dtype=f32", "run.seed=3"}};
  // These two have cuDNN make plans of attention, which takes seconds each: before cuDNN 9.25 one
  // for each number of sequences in a pack.
  Run bf16{"bf16", {"train.dtype=bf16"}, 2}, fp8{"fp8", {"train.dtype=bf16", "train.fp8=true"}, 2};
  Run invariant{"batch_invariant", {"train.dtype=bf16", "train.numerics=batch_invariant"}};
  Run turns{"turns", invariant.settings};
  turns.settings.push_back("rollout.colocated=true");
  if (setup.device == "cuda") turns.settings.push_back("rollout.publish=device");

  const auto end = Clock::now() + std::chrono::seconds(setup.seconds);
  std::vector<Run*> runs = {&f32, &bf16, &invariant, &turns, &fp8, &seed_2, &seed_3};
  std::erase_if(runs, [&](const Run* run) {
    return !setup.only.empty() && std::ranges::find(setup.only, run->name) == setup.only.end();
  });
  bool passed = true;
  double weights = 0;  // of those to come
  for (const Run* run : runs) weights += run->weight;
  for (Run* run : runs) {
    const std::chrono::duration<double> left = end - Clock::now();
    passed &= Execute(setup, *run, left.count() * run->weight / weights);
    weights -= run->weight;
  }
  for (const Run* run : {&f32, &bf16}) ReportPeaks(setup, *run);
  ReportCurves({&f32, &seed_2, &seed_3}, {&bf16, &fp8});
  for (const Run* run : {&f32, &bf16, &fp8}) ReportGap(*run, "");
  for (const Run* run : {&invariant, &turns}) ReportGap(*run, "0");
  ReportCost("batch_invariant", invariant, bf16);
  ReportCost("turns", turns, invariant);
  ReportTurns(turns, invariant);
  return passed ? 0 : 1;
}

}  // namespace
}  // namespace hone::launcher

int main(int argc, char** argv) {
  try {
    return hone::launcher::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "gpu_runs: " << error.what() << "\n";
    return 1;
  }
}
