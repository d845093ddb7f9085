// An error of communication in a run says where the run stood: stage and step.
#include <gmock/gmock.h>

#include <typeinfo>

#include "tests/parallel/forwarding_group.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

constexpr char kLost[] = "[all_gather] group world, rank 0 of 2: rank 1 is gone";

// A group whose peer is lost when the run's metrics have `lines` lines: E, when they gather.
template <class E>
class LosingGroup : public parallel::ForwardingGroup {
 public:
  LosingGroup(std::string metrics, int lines)
      : ForwardingGroup(parallel::MakeSingleGroup()), metrics_(std::move(metrics)), lines_(lines) {}
  std::vector<std::string> AllGatherBytes(const std::string& bytes) override {
    auto& fs = runtime::LocalFileSystem();
    const std::string text = fs.Exists(metrics_) ? fs.ReadAll(metrics_) : "";
    if (std::count(text.begin(), text.end(), '\n') == lines_) throw E(kLost);
    return real()->AllGatherBytes(bytes);
  }

 private:
  std::string metrics_;
  int lines_;
};

// What a run of six steps of `base` and some of `sft` ends with when its peer is lost.
template <class E>
std::string ErrorAfter(int lines) {
  runtime::TemporaryFolder folder;
  WriteQuestions(folder / "questions.jsonl");
  Config file = Config::FromString(TinyRun(folder / "questions.jsonl"), "test.yaml");
  const RunConfig config = ReadRunConfig(file);
  auto world = std::make_shared<LosingGroup<E>>(folder / "run/metrics.jsonl", lines);
  try {
    TrainOneRank(config, folder / "run", false, world, Device::Cpu());
  } catch (const Error& e) {
    EXPECT_EQ(typeid(e), typeid(E));
    return e.what();
  }
  return "";
}

TEST(RunErrors, OfCommunicationNameStageAndStepAndKeepTheirType) {
  EXPECT_EQ(ErrorAfter<CommError>(3), fmt::format("{}; in stage 'base' after step 3", kLost));
  EXPECT_EQ(ErrorAfter<TimeoutError>(8), fmt::format("{}; in stage 'sft' after step 2", kLost));
}

TEST(RunErrors, OthersStayAsTheyAre) { EXPECT_EQ(ErrorAfter<IoError>(1), kLost); }

// A learning rate that spoils the weights at once: what was saved before stays, and the run does
// not go on to its end as if it had learnt.
TEST(RunErrors, StepsThatLearnNothingEndTheRun) {
  runtime::TemporaryFolder folder;
  WriteQuestions(folder / "questions.jsonl");
  auto run = [&](const std::string& dir, const std::string& steps) -> std::string {
    try {
      Train(TinyRun(folder / "questions.jsonl"),
            {"stages.base.lr={peak: 1e300}", "stages.base.save_every=1",
             "stages.base.steps=" + steps},
            folder / dir);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  const std::string stage = "stage 'base': the gradients of steps ";
  EXPECT_THAT(run("long", "200"),
              testing::HasSubstr(stage + "2 to 51 are not finite, so nothing is learnt; its last "
                                         "checkpoint is of step 1."));
  EXPECT_THAT(run("short", "6"), testing::HasSubstr(stage + "2 to 4 are not finite"));
  const auto left =
      runtime::ListCheckpointSteps(runtime::LocalFileSystem(), folder / "long/checkpoints/base");
  EXPECT_EQ(left, std::vector<int64_t>{1});
}

}  // namespace
}  // namespace hone::rl
