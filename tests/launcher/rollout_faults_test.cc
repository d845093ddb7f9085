// timeout: 1500
// A tiny run of `hone run` — two learner ranks, two workers, pretraining and GRPO — of which parts
// are killed with SIGKILL at random moments: a worker, all workers, the rank with the coordinator,
// another rank, the launcher. Started again where need be, the same command ends with the samples,
// metrics and weights of a run that was never disturbed; in synchronous mode, and one rollout
// behind with the reference in the pool. Four kills of five come behind a new step of GRPO, one
// while what the kill before it ended starts again.
//
// Five kills each; HONE_FAULTS=20 build/tests/launcher_rollout_faults_test is the long form, and
// HONE_FAULTS_SEED=n other moments.
#include <map>
#include <set>
#include <utility>

#include "rl/rollout/journal.h"
#include "runtime/philox.h"
#include "tests/launcher/program.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kPrompts = 6, kGroup = 4;
constexpr char kConfig[] = R"(run: {name: faults, seed: 1}
tokenizer: byte
model: {family: deepseek_v3, hidden_size: 32, intermediate_size: 64, moe_intermediate_size: 32,
  num_hidden_layers: 2, first_k_dense_replace: 1, num_attention_heads: 2, n_routed_experts: 4,
  n_shared_experts: 1, num_experts_per_tok: 2, n_group: 1, topk_group: 1, q_lora_rank: 0,
  kv_lora_rank: 16, qk_nope_head_dim: 8, qk_rope_head_dim: 8, v_head_dim: 16, vocab_size: 272,
  max_position_embeddings: 256, tie_word_embeddings: true}
optimizer: {weight_decay: 0.0}
mesh: {dp: 2, ep: 2}
rollout: {workers: 2}
stages:
  - {name: base, kind: pretrain, steps: 12, save_every: 5, lr: {peak: 0.003, schedule: constant},
     batch: {packs: 4, pack_tokens: 512}, data: {family: chain, text: thinking}}
  - {name: rl, kind: grpo, from: base, steps: 20, save_every: 3, reference_every: 4,
     lr: {peak: 0.0003, schedule: constant}, batch: {pack_tokens: 512},
     prompts: {family: chain, split: train}, prompts_per_rollout: 6, group_size: 4, minibatches: 2,
     reward: {accuracy: 1, format: 0.5, language: 1}, sampling: {max_new_tokens: 48},
     max_unusable: 1.0}
)";

int Kills() {
  const char* wanted = std::getenv("HONE_FAULTS");
  return wanted == nullptr ? 5 : std::atoi(wanted);
}

struct Process {
  pid_t pid, parent;
  Words command;
};

std::map<pid_t, Process> AllProcesses() {
  std::map<pid_t, Process> all;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string stat = ReadFile(entry.path().string() + "/stat");
    const size_t at = stat.rfind(')');
    if (at == std::string::npos || stat[at + 2] == 'Z') continue;
    Process p{std::stoi(name), std::stoi(stat.substr(at + 4)), {}};
    std::istringstream words(ReadFile(entry.path().string() + "/cmdline"));
    for (std::string word; std::getline(words, word, '\0');) p.command.push_back(word);
    all[p.pid] = p;
  }
  return all;
}

// Everything that this process and its children started.
std::vector<Process> Descendants(pid_t root) {
  const auto all = AllProcesses();
  std::vector<Process> found;
  std::set<pid_t> known = {root};
  for (bool more = true; more;) {
    more = false;
    for (const auto& [pid, p] : all) {
      if (known.count(p.parent) == 0 || !known.insert(pid).second) continue;
      found.push_back(p);
      more = true;
    }
  }
  return found;
}

std::vector<pid_t> WithRole(const std::vector<Process>& processes, const std::string& role) {
  std::vector<pid_t> pids;
  for (const Process& p : processes) {
    if (p.command.size() > 1 && p.command[0] == HoneProgram() && p.command[1] == role) {
      pids.push_back(p.pid);
    }
  }
  return pids;
}

class RolloutFaultsTest : public testing::TestWithParam<int> {
 protected:
  RolloutFaultsTest() { runtime::LocalFileSystem().WriteAtomically(folder_ / "run.yaml", kConfig); }
  Words Command(const std::string& dir) const {
    return HoneCommand(0, {"run", folder_ / "run.yaml", "--run-dir", dir, "--set",
                           fmt::format("rollout.lag={}", GetParam()), "--set",
                           fmt::format("stages.rl.reference={}", GetParam() ? "pool" : "learner"),
                           "--set", fmt::format("stages.rl.steps={}", Steps())});
  }
  static int Steps() { return 20 * std::max(2, Kills()); }
  void Start(const std::string& dir) {
    program_ = std::make_unique<Program>(Command(dir), folder_ / "output");
  }
  // Everything of the program's that runs now is watched to its end.
  void Note() {
    for (const Process& p : Descendants(program_->pid())) seen_[p.pid] = p.command;
  }
  void ExpectNothingLeft() {
    std::string left;
    for (int i = 0; i < 400; ++i, std::this_thread::sleep_for(milliseconds(100))) {
      left.clear();
      const auto all = AllProcesses();
      for (const auto& [pid, command] : seen_) {
        const auto now = all.find(pid);
        if (now == all.end() || now->second.command != command) continue;
        left += fmt::format("{} {} {}\n", pid, command.empty() ? "" : command[0],
                            command.size() > 1 ? command[1] : "");
      }
      if (left.empty()) return;
    }
    ADD_FAILURE() << "processes are left:\n" << left;
  }
  // Ranks and workers are there, or the run is over.
  std::vector<Process> AwaitEverybody() {
    std::vector<Process> all;
    program_->Await([&] {
      all = Descendants(program_->pid());
      return WithRole(all, "train").size() >= 2 && WithRole(all, "worker").size() >= 2;
    });
    return all;
  }
  // Everybody is there, and then a step of reinforcement learning ends.
  bool AwaitLearning(const std::string& dir) {
    AwaitEverybody();
    const auto steps = [&] {
      const std::string text = ReadFile(dir + "/metrics.jsonl");
      const std::string line = "\"stage\":\"rl\",\"step\":";
      int64_t count = 0;
      for (size_t at = 0; (at = text.find(line, at)) != std::string::npos; ++at) ++count;
      return count;
    };
    int64_t before = steps();
    return program_->Await([&] {
      const int64_t last = std::exchange(before, steps());  // fewer where it went back
      return before > last;
    });
  }
  // Kills one part after a while; false when the run was over before.
  bool KillPart(const std::string& part, milliseconds after, const std::string& dir) {
    AwaitEverybody();
    std::this_thread::sleep_for(after);
    const std::vector<Process> all = AwaitEverybody();
    Note();
    if (program_->Ended()) return false;
    std::vector<pid_t> victims = WithRole(all, part.find("worker") == 0 ? "worker" : "train");
    std::sort(victims.begin(), victims.end());
    if (part == "launcher") victims = {program_->pid()};
    if (part == "worker" || part == "rank 0") victims.resize(std::min<size_t>(1, victims.size()));
    if (part == "rank 1" && victims.size() > 1) victims.erase(victims.begin());
    for (pid_t pid : victims) kill(pid, SIGKILL);
    if (part == "launcher") {
      program_->Wait();
      Start(dir);  // at once: what is left of the old run must not get in its way
    }
    return !victims.empty();
  }

  // The journals hold each sample once, and with the derived files are those of the other run.
  static void ExpectSameSamples(const std::string& dir, const std::string& other) {
    auto& fs = runtime::LocalFileSystem();
    for (int rollout = 0; rollout < Steps() / 2; ++rollout) {
      const std::string name = fmt::format("rl/rollout-{:06d}", rollout);
      const auto mine = rl::ReadJournal(fs, fmt::format("{}/journal/{}.bin", dir, name));
      ASSERT_EQ(mine.size(), static_cast<size_t>(kPrompts * kGroup)) << name;
      std::set<std::pair<int64_t, int64_t>> places;
      for (const rl::Sample& s : mine) places.insert({s.key.prompt, s.key.sample});
      EXPECT_EQ(places.size(), mine.size()) << name << " holds a sample twice";
      EXPECT_EQ(fs.ReadAll(fmt::format("{}/rollouts/{}.jsonl", dir, name)),
                fs.ReadAll(fmt::format("{}/rollouts/{}.jsonl", other, name)));
    }
  }
  static void ExpectSameRun(const std::string& dir, const std::string& undisturbed) {
    const auto want = rl::ReadTrace(undisturbed, {"base", "rl"});
    const auto got = rl::ReadTrace(dir, {"base", "rl"});
    EXPECT_EQ(got.metrics, want.metrics);
    ASSERT_EQ(got.tensors.size(), want.tensors.size());
    for (const auto& [name, values] : want.tensors) {
      EXPECT_TRUE(got.tensors.at(name) == values) << name << " differs";
    }
    ExpectSameSamples(dir, undisturbed);
  }
  void RunUndisturbed(const std::string& dir) {
    Start(dir);
    ASSERT_EQ(program_->Wait(seconds(200)), 0) << program_->output();
  }
  // To the end of the run, by the same command as often as it takes.
  void Finish(const std::string& dir) {
    std::string last;
    for (int starts = 0; starts < 5; ++starts) {
      if (program_->Wait(seconds(200)) == 0) return;
      last = program_->output();
      Start(dir);
    }
    FAIL() << "the run does not end:\n" << last;
  }

  runtime::TemporaryFolder folder_;
  std::unique_ptr<Program> program_;
  std::map<pid_t, Words> seen_;
};

TEST_P(RolloutFaultsTest, AnythingMayBeKilledAtAnyMoment) {
  const std::string undisturbed = folder_ / "undisturbed", killed = folder_ / "killed";
  ASSERT_NO_FATAL_FAILURE(RunUndisturbed(undisturbed));
  for (const auto& line : rl::ReadTrace(undisturbed, {"rl"}).metrics) {
    if (line.at("stage") != "rl" || GetParam() != 0) continue;
    // Workers and learner compute the same bits, with experts over two ranks.
    ASSERT_EQ(line.at("logprob_gap"), 0.0) << line.dump();
  }
  const std::vector<std::string> parts = {"worker", "rank 0", "launcher", "workers", "rank 1"};
  const char* seed = std::getenv("HONE_FAULTS_SEED");
  const RandomStream random{HashName("faults"), static_cast<uint64_t>(GetParam()),
                            seed == nullptr ? 1u : std::stoull(seed)};
  Start(killed);
  // Behind the kill of rank 0 or of the launcher, everything starts again.
  const std::string early = GetParam() == 0 ? "launcher" : "workers";
  int kills = 0;
  for (int i = 0; i < Kills() && !HasFailure(); ++i) {
    const std::string& part = parts[static_cast<size_t>(i) % parts.size()];
    const bool learning = part != early && AwaitLearning(killed);
    const auto after = milliseconds(random.Below(learning ? 100 : 400, static_cast<uint64_t>(i)));
    const bool hit = KillPart(part, after, killed);
    kills += hit && learning;
    // Over, or it gave up after too many restarts.
    if (!hit && program_->Wait(seconds(200)) != 0) Start(killed);
  }
  EXPECT_GT(kills, Kills() / 2) << "the run is too short for the kills";
  ASSERT_NO_FATAL_FAILURE(Finish(killed));
  ExpectNothingLeft();
  ExpectSameRun(killed, undisturbed);
}

TEST_P(RolloutFaultsTest, SignalsEndWithACheckpointAndTheSameCommandGoesOn) {
  const std::string undisturbed = folder_ / "undisturbed", stopped = folder_ / "stopped";
  ASSERT_NO_FATAL_FAILURE(RunUndisturbed(undisturbed));
  int64_t last = -1;
  // In the middle of reinforcement learning: behind step 8, where the reference is another and no
  // checkpoint is due; and a while after it went on.
  for (const auto& [signal, line] : {std::pair{SIGTERM, "\"stage\":\"rl\",\"step\":8,"},
                                     std::pair{SIGINT, "\"stage\":\"rl\""}}) {
    Start(stopped);
    const std::string metrics = stopped + "/metrics.jsonl";
    const size_t begun = ReadFile(metrics).size();
    auto reached = [&] {
      const std::string text = ReadFile(metrics);
      return text.size() > begun && text.find(line, begun) != std::string::npos;
    };
    for (int i = 0; i < 3000 && !program_->Ended() && !reached(); ++i) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    Note();
    program_->Signal(signal);
    EXPECT_EQ(program_->Wait(seconds(60)), 75) << program_->output();
    ExpectNothingLeft();
    const auto steps =
        runtime::ListCheckpointSteps(runtime::LocalFileSystem(), stopped + "/checkpoints/rl");
    ASSERT_FALSE(steps.empty());
    EXPECT_GT(steps.back(), last) << "nothing new was saved";
    last = steps.back();
    ASSERT_LT(last, Steps()) << "the run is too short for the signals";
  }
  Start(stopped);
  ASSERT_EQ(program_->Wait(seconds(200)), 0) << program_->output();
  ExpectSameRun(stopped, undisturbed);
}

INSTANTIATE_TEST_SUITE_P(Modes, RolloutFaultsTest, testing::Values(0, 1), [](const auto& info) {
  return info.param == 0 ? "Synchronous" : "OneBehind";
});

}  // namespace
}  // namespace hone::launcher
