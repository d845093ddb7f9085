// timeout: 900
// A run under mpirun that saves after every step is killed with SIGKILL at random moments: a rank,
// or mpirun itself. Each time the same command goes on, from no earlier than the last completed
// save, and ends with the weights and metrics of a run that was never disturbed.
//
// Eight kills; HONE_KILLS=50 build/tests/launcher_kill_test is the long form.
#include <regex>

#include "runtime/philox.h"
#include "tests/launcher/program.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

int Kills() {
  const char* wanted = std::getenv("HONE_KILLS");
  return wanted == nullptr ? 8 : std::atoi(wanted);
}

class KillTest : public testing::Test {
 protected:
  KillTest() {
    rl::WriteQuestions(folder_ / "questions.jsonl");
    runtime::LocalFileSystem().WriteAtomically(folder_ / "tiny.yaml",
                                               rl::TinyRun(folder_ / "questions.jsonl"));
  }
  // The whole run lasts so long that the kills hit it.
  Words Command(const std::string& dir) const {
    return HoneCommand(2, {"train", folder_ / "tiny.yaml", "--run-dir", dir, "--set",
                           fmt::format("stages.base.steps={}", 25 * Kills()), "--set",
                           "stages.base.save_every=1", "--set", "stages.sft.save_every=1", "--set",
                           "mesh.dp=2", "--set", "mesh.ep=2", "--set", "train.dtype=f32"});
  }
  // (stage, step) of the newest complete checkpoint.
  static std::pair<int, int64_t> Newest(const std::string& dir) {
    for (int stage : {1, 0}) {
      const auto steps = runtime::ListCheckpointSteps(
          runtime::LocalFileSystem(), dir + "/checkpoints/" + (stage == 1 ? "sft" : "base"));
      if (!steps.empty()) return {stage, steps.back()};
    }
    return {0, 0};
  }
  // What the first progress line says was taken: {-1, 0} when there is none.
  static std::pair<int, int64_t> FirstStep(const std::string& output) {
    std::smatch match;
    if (!std::regex_search(output, match, std::regex("(base|sft) (\\d+)/"))) return {-1, 0};
    return {match[1] == "sft" ? 1 : 0, std::stoll(match[2])};
  }
  // All learners end when one of them, or mpirun, does.
  static void AwaitEnd(const std::string& dir) {
    for (int i = 0; i < 3000; ++i) {
      if (LearnersOf(dir).empty()) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << "ranks go on after the kill";
  }
  // One kill in four while the ranks start and load; the others some steps later, in the middle of
  // training and saving.
  static void AwaitMoment(const std::string& dir, Program& program, const RandomStream& random,
                          uint64_t kill_index) {
    program.Await([&] { return LearnersOf(dir).size() == 2; });
    const bool early = kill_index % 4 == 1;
    if (!early) {
      program.Await([&] { return FirstStep(program.output()).first >= 0; });
      const auto steps = static_cast<int>(random.Below(20, 4 * kill_index + 1));
      const auto lines = [&] {
        const std::string text = ReadFile(dir + "/metrics.jsonl");
        return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
      };
      const int before = lines();
      program.Await([&] { return lines() >= before + steps; });
    }
    std::this_thread::sleep_for(
        std::chrono::microseconds(random.Below(early ? 400'000 : 40'000, 4 * kill_index + 2)));
  }
  // Starts the run, kills part of it after a while; false when it was done before.
  bool StartAndKill(const std::string& dir, const RandomStream& random, uint64_t kill_index) {
    const auto before = Newest(dir);
    Program program(Command(dir), folder_ / "output");
    AwaitMoment(dir, program, random, kill_index);
    const std::vector<pid_t> ranks = LearnersOf(dir);
    const uint64_t victim = random.Below(ranks.size() + 1, 4 * kill_index);
    const bool done = program.Ended();
    if (!done) kill(victim < ranks.size() ? ranks[victim] : program.pid(), SIGKILL);
    program.Wait();
    AwaitEnd(dir);
    CheckGoesOn(before, program.output());
    EXPECT_GE(Newest(dir), before);
    return !done;
  }
  // The first step taken is the one behind the newest checkpoint.
  static void CheckGoesOn(const std::pair<int, int64_t>& newest, const std::string& output) {
    const auto first = FirstStep(output);
    if (first.first < 0) return;
    const bool next = first == std::pair{newest.first, newest.second + 1};
    const bool next_stage = newest.first == 0 && first == std::pair{1, int64_t{1}};
    EXPECT_TRUE(next || next_stage) << "newest " << testing::PrintToString(newest) << ", but\n"
                                    << output;
  }

  runtime::TemporaryFolder folder_;
};

TEST_F(KillTest, ARunGoesOnAfterEachKillAndEndsTheSame) {
  const std::string undisturbed = folder_ / "undisturbed", killed = folder_ / "killed";
  {
    Program program(Command(undisturbed), folder_ / "output");
    ASSERT_EQ(program.Wait(std::chrono::seconds(300)), 0) << program.output();
  }
  const char* seed = std::getenv("HONE_KILL_SEED");
  const RandomStream random{HashName("kills"), seed == nullptr ? 1u : std::stoull(seed)};
  int kills = 0;
  for (int i = 0; i < Kills() && !HasFailure(); ++i) {
    kills += StartAndKill(killed, random, static_cast<uint64_t>(i));
  }
  EXPECT_GT(kills, Kills() / 2) << "the run is too short for the kills";
  const auto newest = Newest(killed);
  Program program(Command(killed), folder_ / "output");
  ASSERT_EQ(program.Wait(std::chrono::seconds(300)), 0) << program.output();
  CheckGoesOn(newest, program.output());
  const auto want = rl::ReadTrace(undisturbed, {"base", "sft"});
  const auto got = rl::ReadTrace(killed, {"base", "sft"});
  EXPECT_EQ(got.tensors, want.tensors);
  EXPECT_EQ(got.metrics, want.metrics);
}

}  // namespace
}  // namespace hone::launcher
