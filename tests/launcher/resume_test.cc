// The program itself under mpirun: stopped by a signal and started again, as never stopped; and
// the same bits as with threads for ranks. tests/rl/resume_test.cc stops at every step.
#include "tests/launcher/program.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

const Words kLayout = {"mesh.pp=2",       "mesh.dp=2",
                       "mesh.ep=2",       "pipeline.schedule=zb_h1",
                       "train.dtype=f32", "stages.base.steps=60"};

class ProgramResumeTest : public testing::Test {
 protected:
  ProgramResumeTest() {
    rl::WriteQuestions(folder_ / "questions.jsonl");
    yaml_ = rl::TinyRun(folder_ / "questions.jsonl");
    runtime::LocalFileSystem().WriteAtomically(folder_ / "tiny.yaml", yaml_);
  }
  Words Arguments(const std::string& subcommand, const std::string& dir) const {
    Words words = {subcommand, folder_ / "tiny.yaml", "--run-dir", dir};
    for (const std::string& assignment : kLayout) {
      words.insert(words.end(), {"--set", assignment});
    }
    return words;
  }
  static void AwaitMetrics(const std::string& dir, Program& program, int lines) {
    EXPECT_TRUE(program.Await([&] {
      const std::string text = ReadFile(dir + "/metrics.jsonl");
      return std::count(text.begin(), text.end(), '\n') >= lines;
    })) << "it ended before it was to be stopped:\n"
        << program.output();
  }

  runtime::TemporaryFolder folder_;
  std::string yaml_;
};

TEST_F(ProgramResumeTest, StoppedUnderMpirunAndNeverStoppedOnThreads) {
  ASSERT_TRUE(rl::Train(yaml_, kLayout, folder_ / "threads"));
  const std::string dir = folder_ / "mpi";
  for (const char* subcommand : {"run", "train"}) {
    SCOPED_TRACE(subcommand);
    std::filesystem::remove_all(dir);
    const bool local = subcommand == std::string("run");  // starts mpirun by itself
    const Words command = HoneCommand(local ? 0 : 4, Arguments(subcommand, dir));
    for (int lines : {3, 20}) {
      Program program(command, folder_ / "output");
      AwaitMetrics(dir, program, lines);
      program.Signal(local ? SIGTERM : SIGUSR1);
      EXPECT_EQ(program.Wait(), 75) << program.output();
    }
    Program program(command, folder_ / "output");
    EXPECT_EQ(program.Wait(), 0) << program.output();
    EXPECT_EQ(rl::ReadTrace(dir, {"base", "sft"}),
              rl::ReadTrace(folder_ / "threads", {"base", "sft"}));
  }
}

// The second of two supervisors ends, and has started nothing.
TEST_F(ProgramResumeTest, OneSupervisorAtATime) {
  const std::string dir = folder_ / "run";
  const Words command = HoneCommand(
      0, {"run", folder_ / "tiny.yaml", "--run-dir", dir, "--set", "stages.base.steps=100000"});
  Program first(command, folder_ / "output");
  AwaitMetrics(dir, first, 1);
  Program second(command, folder_ / "second");
  EXPECT_EQ(second.Wait(), 2) << second.output();
  EXPECT_NE(second.output().find(fmt::format("is under way already (pid {} on", first.pid())),
            std::string::npos)
      << second.output();
  first.Signal(SIGTERM);
  EXPECT_EQ(first.Wait(), 75) << first.output();
}

// A second start of a finished run does nothing, and a run that is under way is not disturbed.
TEST_F(ProgramResumeTest, OneWriterAtATime) {
  const std::string dir = folder_ / "run";
  const Words command =
      HoneCommand(0, {"train", folder_ / "tiny.yaml", "--run-dir", dir, "--until", "base"});
  {
    Program program(command, folder_ / "output");
    ASSERT_EQ(program.Wait(), 0) << program.output();
  }
  const std::string metrics = ReadFile(dir + "/metrics.jsonl");
  Program again(command, folder_ / "output");
  EXPECT_EQ(again.Wait(), 0) << again.output();
  EXPECT_EQ(ReadFile(dir + "/metrics.jsonl"), metrics);
}

}  // namespace
}  // namespace hone::launcher
