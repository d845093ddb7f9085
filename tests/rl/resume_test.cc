// A run that is stopped after every step and started again, as one that never was: to the bit in
// the same layout, and within rounding when each start has another one.
#include <gtest/gtest.h>

#include <thread>

#include "tests/read_json.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

using Overrides = std::vector<std::string>;

const std::vector<std::string> kStages = {"base", "sft"};

class ResumeTest : public testing::Test {
 protected:
  ResumeTest() {
    WriteQuestions(folder_ / "questions.jsonl");
    yaml_ = TinyRun(folder_ / "questions.jsonl");
  }
  RunTrace Undisturbed(const Overrides& overrides,
                       const std::vector<std::string>& stages = kStages) {
    const std::string dir = NewDir();
    EXPECT_TRUE(Train(yaml_, overrides, dir));
    return ReadTrace(dir, stages);
  }
  // `overrides` of the n-th start.
  RunTrace StoppedAtEveryStep(const std::function<Overrides(int)>& overrides, int* starts) {
    const std::string dir = NewDir();
    for (*starts = 1; *starts < 50; ++*starts) {
      if (Train(yaml_, overrides(*starts), dir, /*stop=*/true)) break;
    }
    return ReadTrace(dir, kStages);
  }
  std::string NewDir() { return folder_ / fmt::format("run-{}", runs_++); }

  runtime::TemporaryFolder folder_;
  std::string yaml_;
  int runs_ = 0;
};

Overrides Layout(int pp, int dp, int ep, const std::string& schedule) {
  return {fmt::format("mesh.pp={}", pp), fmt::format("mesh.dp={}", dp),
          fmt::format("mesh.ep={}", ep), "pipeline.schedule=" + schedule,
          fmt::format("pipeline.chunks={}", schedule == "interleaved" ? 2 : 1)};
}

Overrides With(Overrides overrides, const std::string& more) {
  overrides.push_back(more);
  return overrides;
}

void ExpectWithinRounding(const RunTrace& got, const RunTrace& want) {
  ASSERT_EQ(got.metrics.size(), want.metrics.size());
  for (size_t i = 0; i < want.metrics.size(); ++i) {
    for (const char* key : {"loss", "grad_norm"}) {
      const double w = want.metrics[i].at(key), g = got.metrics[i].at(key);
      EXPECT_LE(std::abs(g - w), 1e-10 * std::abs(w)) << key << " of line " << i;
    }
  }
  ASSERT_EQ(got.tensors.size(), want.tensors.size());
  for (const auto& [name, values] : want.tensors) {
    double worst = 0, scale = 1e-300;
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_TRUE(std::isfinite(got.tensors.at(name)[i])) << name;
      worst = std::max(worst, std::abs(got.tensors.at(name)[i] - values[i]));
      scale = std::max(scale, std::abs(values[i]));
    }
    EXPECT_LE(worst, 1e-10 * scale) << name;
  }
}

TEST_F(ResumeTest, SameLayoutSameBits) {
  for (const Overrides& overrides : {With(Layout(1, 1, 1, "1f1b"), "train.dtype=bf16"),
                                     With(Layout(1, 2, 2, "1f1b"), "train.dtype=f32"),
                                     With(Layout(2, 1, 1, "dualpipe_v"), "train.dtype=f32"),
                                     With(Layout(2, 2, 2, "interleaved"), "train.dtype=f32")}) {
    SCOPED_TRACE(testing::PrintToString(overrides));
    int starts = 0;
    const RunTrace want = Undisturbed(overrides);
    const RunTrace got = StoppedAtEveryStep([&](int) { return overrides; }, &starts);
    ASSERT_GT(want.metrics.size(), 8u);
    EXPECT_EQ(starts, static_cast<int>(want.metrics.size()) + 1);
    EXPECT_EQ(got.metrics, want.metrics);
    EXPECT_EQ(got.tensors, want.tensors);
  }
}

TEST_F(ResumeTest, EveryStartInAnotherLayoutStaysWithinRounding) {
  const std::vector<Overrides> layouts = {
      Layout(1, 2, 2, "1f1b"),  Layout(2, 1, 1, "gpipe"),      Layout(1, 1, 1, "1f1b"),
      Layout(2, 2, 1, "zb_h1"), Layout(2, 2, 2, "dualpipe_v"), Layout(1, 4, 4, "1f1b"),
      Layout(4, 1, 1, "1f1b"),  Layout(2, 1, 1, "interleaved")};
  int starts = 0;
  const RunTrace want = Undisturbed({});
  const RunTrace got = StoppedAtEveryStep(
      [&](int start) { return layouts[static_cast<size_t>(start) % layouts.size()]; }, &starts);
  ExpectWithinRounding(got, want);
}

// One step of five sequences and one of the last: fewer than some schedules want microbatches.
TEST_F(ResumeTest, ALastStepOfFewSequencesFitsEverySchedule) {
  yaml_ = kTinyModel + R"(train: {dtype: f64}
stages:
  - {name: sft, kind: sft, epochs: 1, save_every: 2, lr: {peak: 0.002},
     batch: {packs: 8, pack_tokens: 16}, data: {limit: 16, jsonl: )" +
          (folder_ / "questions.jsonl") + "}}\n";
  const RunTrace want = Undisturbed({}, {"sft"});
  ASSERT_EQ(want.metrics.size(), 2u);
  EXPECT_LT(want.metrics[1].at("tokens"), 20) << "few sequences";
  for (int dp : {1, 2}) {
    for (const char* schedule : {"gpipe", "zb_h1", "dualpipe_v", "interleaved"}) {
      SCOPED_TRACE(fmt::format("{}, dp {}", schedule, dp));
      ExpectWithinRounding(Undisturbed(Layout(2, dp, 1, schedule), {"sft"}), want);
    }
  }
}

// More examples than the ranks measure between two looks at whether they are to stop.
TEST_F(ResumeTest, StepsOfEpochsAreCountedByAllRanksAndTheCountMayBeStopped) {
  std::string lines;
  for (int i = 0; i < 2500; ++i) {
    lines += nlohmann::json{{"prompt", ""}, {"completion", std::string(1 + i * i % 7, 'a')}}.dump();
    lines += '\n';
  }
  runtime::LocalFileSystem().WriteAtomically(folder_ / "many.jsonl", lines);
  yaml_ = kTinyModel + R"(mesh: {dp: 2}
stages:
  - {name: sft, kind: sft, epochs: 2, save_every: 9, lr: {peak: 0.002},
     batch: {packs: 2, pack_tokens: 700, max_length: 20}, data: {jsonl: )" +
          (folder_ / "many.jsonl") + "}}\n";
  const std::string dir = NewDir();
  EXPECT_FALSE(Train(yaml_, {}, dir, /*stop=*/true));
  EXPECT_FALSE(std::filesystem::exists(dir + "/checkpoints"));
  EXPECT_TRUE(Train(yaml_, {}, dir));
  const auto state = ReadJson(dir + "/state.json")["stages"][0];
  EXPECT_EQ(state["step"], state["steps"]);
  EXPECT_GT(state["step"], 5);
}

TEST_F(ResumeTest, SavingInTheBackgroundChangesNoBit) {
  const Overrides layout = With(Layout(2, 2, 2, "dualpipe_v"), "train.dtype=f32");
  const RunTrace want = Undisturbed(layout);
  EXPECT_EQ(Undisturbed(layout), want) << "the same twice";
  EXPECT_EQ(Undisturbed(With(layout, "train.asynchronous_checkpoints=false")), want);
  EXPECT_EQ(Undisturbed(With(layout, "train.activation_checkpointing=true")), want);
}

const char kSuites[] = R"(evaluate:
  after: never
  suites:
    - {name: texts, text: {family: chain, text: answer}, batch: {packs: 2, pack_tokens: 48}}
    - {name: problems, problems: {family: chain}, sampling: {max_new_tokens: 40}}
)";
const char kUntilLoss[] = "stages.base.until={suite: texts, metric: loss, at_least: 0, every: 4}";
const char kUntilAccuracy[] =
    "stages.base.until={suite: problems, metric: accuracy, at_least: 0, every: 4}";

// Step 4 is saved before it is looked at; the start that goes on from there looks.
TEST_F(ResumeTest, AStageEndsOnTheSameLookWhereverItWasStopped) {
  yaml_ += kSuites;
  int starts = 0;
  const RunTrace want = Undisturbed({kUntilLoss});
  EXPECT_EQ(want.metrics[4].at("stage"), "sft") << "behind four steps of base";
  const RunTrace got = StoppedAtEveryStep([](int) { return Overrides{kUntilLoss}; }, &starts);
  EXPECT_EQ(got.metrics, want.metrics);
  EXPECT_EQ(got.tensors, want.tensors);
}

// Texts are measured without workers, also of a stage that is done; problems are left out.
TEST_F(ResumeTest, SuitesWithoutWorkersAreMeasuredWhereTheyNeedNone) {
  yaml_ += kSuites;
  const std::string dir = NewDir();
  ASSERT_TRUE(Train(yaml_, {}, dir));
  auto recorded = [&] { return RunDirectory(runtime::LocalFileSystem(), dir).ReadState(); };
  EXPECT_TRUE(recorded().Find("base")->evaluations.empty()) << "after: never";
  ASSERT_TRUE(Train(yaml_, {"evaluate.after=every_stage", "mesh.dp=2"}, dir));
  for (const std::string& stage : kStages) {
    const auto evaluations = recorded().Find(stage)->evaluations;
    ASSERT_EQ(evaluations.size(), 1u) << stage;
    EXPECT_GT(evaluations.at("texts").at("loss"), 0);
  }
}

// A suite of samples is measured behind the stage that writes them, also when the run goes on with
// other stages than it began with.
TEST_F(ResumeTest, SuitesOfSamplesAreMeasuredBehindThoseWhoWriteThem) {
  const std::string dir = NewDir();
  ASSERT_TRUE(Train(yaml_, {}, dir));
  {
    RunDirectory directory(runtime::LocalFileSystem(), dir);
    directory.Acquire(0);
    RunState state = directory.ReadState();
    state.stages.emplace_back();
    state.stages.back().name = "kept";
    state.stages.back().state = "done";
    directory.WriteState(state);
    directory.fs().MakeDirs(dir + "/datasets");
    directory.fs().WriteAtomically(directory.dataset("kept"),
                                   R"({"prompt": "1+1=", "completion": "2"})"
                                   "\n");
  }
  yaml_ += R"(  - {name: kept, kind: rejection_sampling, from: sft, prompts: {family: chain},
     sampling: {max_new_tokens: 40}}
  - {name: look, kind: evaluate, from: sft}
rollout: {workers: 1}
evaluate: {suites: [{name: written, samples: kept, batch: {packs: 1, pack_tokens: 48}}]}
)";
  ASSERT_TRUE(Train(yaml_, {}, dir));
  RunState state = RunDirectory(runtime::LocalFileSystem(), dir).ReadState();
  for (const std::string& stage : kStages) {
    EXPECT_TRUE(state.Find(stage)->evaluations.empty()) << stage;
  }
  EXPECT_GT(state.Find("look")->evaluations.at("written").at("loss"), 0);
}

TEST_F(ResumeTest, AStopWhileALookSamplesKeepsTheSteps) {
  yaml_ += kSuites;
  const std::string dir = NewDir();
  Config file = Config::FromString(yaml_, "test.yaml");
  for (const char* line : {"mesh.dp=2", "stages.base.save_every=100", kUntilAccuracy}) {
    file.Override(line);
  }
  const RunConfig config = ReadRunConfig(file);
  std::atomic<bool> stop{false}, ended{false};
  std::thread signal([&] {
    while (!ended && !std::filesystem::exists(dir + "/journal")) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    stop = true;
  });
  parallel::RunThreadRanks(2, [&](const parallel::GroupPtr& world) {
    EXPECT_FALSE(TrainOneRank(config, dir, stop, world, TestDevice(), /*with_pool=*/true));
  });
  ended = true;
  signal.join();
  EXPECT_EQ(runtime::ListCheckpointSteps(runtime::LocalFileSystem(), dir + "/checkpoints/base"),
            std::vector<int64_t>{4});
}

// Killed before the first checkpoint: the steps are taken again, their lines are not there twice.
TEST_F(ResumeTest, DataThatChangedAreNamed) {
  auto& fs = runtime::LocalFileSystem();
  const std::string dir = NewDir(), path = folder_ / "questions.jsonl", lines = fs.ReadAll(path);
  const std::string line = lines.substr(0, lines.find('\n') + 1);
  while (ReadCheckpoints(dir, "sft").empty()) ASSERT_FALSE(Train(yaml_, {}, dir, /*stop=*/true));
  for (const std::string& changed : {lines + line, line + lines.substr(0, lines.size() / 2)}) {
    fs.WriteAtomically(path, changed.substr(0, changed.rfind('\n') + 1));
    try {
      Train(yaml_, {}, dir);
      ADD_FAILURE() << "it went on";
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find("were 40 examples ("), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("checkpoints/sft"), std::string::npos) << e.what();
    }
  }
  std::string other = lines;
  other[other.find("\"completion\":\"") + 14] = 'z';
  fs.WriteAtomically(path, other);
  EXPECT_THROW(Train(yaml_, {}, dir), DataError) << "as many, but not the same";
  fs.WriteAtomically(path, lines);
  EXPECT_TRUE(Train(yaml_, {}, dir));
}

TEST_F(ResumeTest, LinesOfStepsTakenAgainAreCutOff) {
  const std::string dir = NewDir();
  ASSERT_TRUE(Train(yaml_, {}, dir));
  const RunTrace want = ReadTrace(dir, kStages);
  std::filesystem::remove_all(dir + "/checkpoints/sft");
  auto state = ParseJson(runtime::LocalFileSystem().ReadAll(dir + "/state.json"));
  state["stages"][1]["state"] = "running";
  runtime::LocalFileSystem().WriteAtomically(dir + "/state.json", state.dump());
  ASSERT_TRUE(Train(yaml_, {}, dir));
  EXPECT_EQ(ReadTrace(dir, kStages), want);
}

// A stage is put between two of which the second has begun; then the first goes on once more.
TEST_F(ResumeTest, LinesOfOtherStagesStay) {
  const RunTrace want = Undisturbed({});
  const std::string dir = NewDir();
  for (int start = 0; start < 8; ++start) ASSERT_FALSE(Train(yaml_, {}, dir, /*stop=*/true));
  const std::string middle =
      R"(  - {name: middle, kind: sft, from: base, steps: 2, lr: {peak: 0.002},
     batch: {packs: 8, pack_tokens: 24}, data: {family: chain, text: answer}}
)";
  ASSERT_TRUE(Train(std::string(yaml_).insert(yaml_.find("  - {name: sft"), middle), {}, dir));
  auto& fs = runtime::LocalFileSystem();
  auto state = ParseJson(fs.ReadAll(dir + "/state.json"));
  state["stages"][0]["state"] = "running";
  fs.WriteAtomically(dir + "/state.json", state.dump());
  ASSERT_TRUE(Train(yaml_, {}, dir));
  std::vector<nlohmann::json> others;
  int64_t steps_of_middle = 0;
  for (const nlohmann::json& line : ReadTrace(dir, kStages).metrics) {
    if (line.at("stage") == "middle") {
      EXPECT_EQ(line.at("step"), ++steps_of_middle);
    } else {
      others.push_back(line);
    }
  }
  EXPECT_EQ(steps_of_middle, 2);
  EXPECT_EQ(others, want.metrics);
}

}  // namespace
}  // namespace hone::rl
