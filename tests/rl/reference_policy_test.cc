// emulated: ascending
// The reference policy in the host's memory against the one on the learner's device: the bits of
// what it reads, what the device holds, and its checkpoints. And what samples of workers with other
// bits are corrected by.
#include "rl/stages/reference_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "rl/stages/logprobs.h"
#include "tests/rl/run_testing.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::rl {
namespace {

constexpr char kStages[] = R"(train: {dtype: bf16}
stages:
  - {name: rl, kind: grpo, steps: 2, lr: {peak: 0.001}, batch: {pack_tokens: 48},
     prompts: {family: chain}, reward: {accuracy: 1}, group_size: 2, prompts_per_rollout: 3}
)";

RolloutBatch MakeRollout() {
  RolloutBatch rollout;
  for (int s = 0; s < 6; ++s) {
    Sample& sample = rollout.samples.emplace_back();
    sample.key = {"rl", 0, s / 2, s % 2};
    for (int i = 0; i < 9 + s; ++i) {
      const TokenSource source = i < 3 ? TokenSource::kPrompt : TokenSource::kModel;
      sample.tokens.push_back({(31 * s + 7 * i) % 256, source, 0, 1});
    }
    rollout.group.push_back(s / 2);
  }
  rollout.reward = rollout.advantage = std::vector<double>(6, 0.0);
  return rollout;
}

// Of the magnitudes of all weights.
double Sum(const SlabIndex& weights) {
  double sum = 0;
  for (const SlabTensor& w : weights) {
    for (double x : runtime::ToDoubles(w.tensor)) sum += std::abs(x);
  }
  return sum;
}

RunConfig ReadConfig(const std::string& place, const std::vector<std::string>& more = {}) {
  Config file = Config::FromString(kTinyModel + kStages, "test.yaml");
  for (const std::string& assignment :
       {std::string("model.num_hidden_layers=2"), std::string("model.num_nextn_predict_layers=0"),
        std::string("model.initializer_range=0.3"), "stages.rl.reference=" + place}) {
    file.Override(assignment);
  }
  for (const std::string& assignment : more) file.Override(assignment);
  return ReadRunConfig(file);
}

struct LearnerRun {
  LearnerRun(const std::string& place, const std::string& dir, const parallel::GroupPtr& world,
             const std::vector<std::string>& more = {})
      : config(ReadConfig(place, more)),
        directory(runtime::LocalFileSystem(), dir),
        ctx(TestDevice()),
        mesh(config.mesh, ctx.device().is_cpu() ? world : parallel::MakeStagedGroup(ctx, world)),
        learner(ctx, mesh, config, directory.fs()),
        env{config, directory, learner, data::LoadTokenizer("byte", {}),
            state,  metrics,   nullptr, stop} {
    env.LoadStart("init");
  }
  const StageConfig& stage() const { return config.stages[0]; }
  // Other weights in the policy.
  void Change(uint64_t seed) {
    for (auto& chunk : learner.chunks()) chunk->Initialize(seed);
  }
  // As a policy's checkpoint.
  void SaveModel(const std::string& checkpoints, int64_t step) {
    learner.SaveSlabs(checkpoints + "/" + runtime::CheckpointStepName(step),
                      Learner::StateOf(learner.chunks(), "model/"));
    learner.WaitForSave();
  }
  runtime::MemoryUsage Usage() const { return ctx.allocator()->Usage(); }

  RunConfig config;
  RunDirectory directory;
  Context ctx;
  parallel::Mesh mesh;
  Learner learner;
  RunState state;
  std::unique_ptr<runtime::MetricsWriter> metrics;
  const std::atomic<bool> stop{false};
  Environment env;
};

constexpr auto kWeights = static_cast<size_t>(MemoryCategory::kWeights);

void OnOneRank(const std::function<void(const parallel::GroupPtr&)>& body) {
  parallel::RunThreadRanks(1, body);
}

TEST(ReferencePolicy, OfTheHostReadsTheBitsOfTheLearners) {
  runtime::TemporaryFolder folder;
  OnOneRank([&](const parallel::GroupPtr& world) {
    const RolloutBatch batch = MakeRollout();
    std::vector<std::vector<std::vector<float>>> read;
    for (const char* place : {"learner", "host"}) {
      LearnerRun run(place, folder / place, world);
      ReferencePolicy reference(run.env, run.stage());
      reference.Refresh(0);
      run.Change(17);
      read.push_back(reference.Logprobs(batch, 0));
      reference.Refresh(1);
      run.Change(18);
      read.push_back(reference.Logprobs(batch, 1));
      EXPECT_NE(read[0], read[1]) << "the refresh changed nothing";
    }
    EXPECT_EQ(read[0][0].size(), 6u);
    EXPECT_EQ(read[2], read[0]);
    EXPECT_EQ(read[3], read[1]);
  });
}

// The recorded experts are the policy's. Workers, who read with the reference in the pool, choose
// its own, and so does it everywhere else.
TEST(ReferencePolicy, ChoosesItsOwnExperts) {
  runtime::TemporaryFolder folder;
  OnOneRank([&](const parallel::GroupPtr& world) {
    RolloutBatch batch = MakeRollout();
    for (Sample& sample : batch.samples) {
      for (size_t i = 1; i < sample.tokens.size(); ++i) {
        for (int32_t expert : {0, 1}) sample.routing_TLK.push_back(expert);
      }
    }
    for (const char* place : {"learner", "host"}) {
      std::vector<std::vector<std::vector<float>>> read, of_policy;
      for (const char* replay : {"false", "true"}) {
        LearnerRun run(place, folder / (std::string(place) + replay), world,
                       {std::string("stages.rl.replay_routing=") + replay});
        ReferencePolicy reference(run.env, run.stage());
        reference.Refresh(0);
        read.push_back(reference.Logprobs(batch, 0));
        of_policy.push_back(LearnerLogprobs(run.env, run.stage(), batch, run.learner.engine()));
      }
      EXPECT_EQ(read[1], read[0]) << place;
      EXPECT_EQ(of_policy[0], read[0]) << place;
      EXPECT_NE(of_policy[1], of_policy[0]) << place;
    }
  });
}

// Samples of the policy itself whose workers' log-probabilities lie .1 above the learner's.
TEST(OldLogprobs, CorrectForWorkersThatDrawOtherBits) {
  runtime::TemporaryFolder folder;
  OnOneRank([&](const parallel::GroupPtr& world) {
    auto weight = [&](std::vector<std::string> more) {
      more.push_back("stages.rl.loss.importance_cap=1.5");
      LearnerRun run("learner", folder / "run", world, more);
      RolloutBatch batch = MakeRollout();
      const auto logp = LearnerLogprobs(run.env, run.stage(), batch, run.learner.engine());
      for (size_t s = 0; s < batch.samples.size(); ++s) {
        for (size_t j = 0; j < logp[s].size(); ++j) {
          batch.samples[s].tokens[3 + j].logp = logp[s][j] + 0.1f;
        }
      }
      AddOldLogprobs(run.env, run.stage(), &batch);
      std::vector<int64_t> all(batch.samples.size());
      std::iota(all.begin(), all.end(), 0);
      const auto data = MakeLearnerBatches(batch, all, run.stage().grpo, run.stage().batch, 1, 0);
      double sum = 0;
      const PolicyLoss loss(run.stage().grpo.loss);
      for (auto& outcome : run.learner.engine().Evaluate(data.microbatches, loss, false)) {
        sum += outcome.metrics.at("importance_weight");
      }
      return sum;
    };
    for (const char* minibatches : {"1", "2"}) {
      const std::string steps = std::string("stages.rl.minibatches=") + minibatches;
      EXPECT_NEAR(weight({steps}), 1, 1e-6) << "no gap is allowed: nothing to correct for";
      for (const char* apart : {"rollout.allow_logprob_gap=true", "rollout.numerics=fast",
                                "train.numerics=fast", "rollout.absorb=true"}) {
        EXPECT_NEAR(weight({steps, apart}), std::exp(-0.1), 1e-3) << apart;
      }
    }
  });
}

TEST(ReferencePolicy, OfTheHostIsOnTheDeviceOnlyWhileItReads) {
  runtime::TemporaryFolder folder;
  OnOneRank([&](const parallel::GroupPtr& world) {
    LearnerRun run("host", folder / "run", world);
    const int64_t policy = run.Usage().live[kWeights];
    ReferencePolicy reference(run.env, run.stage());
    reference.Refresh(0);
    EXPECT_EQ(run.Usage().peak[kWeights], policy);
    reference.Logprobs(MakeRollout(), 0);
    EXPECT_EQ(run.Usage().live[kWeights], policy);
    EXPECT_EQ(run.Usage().peak[kWeights], 2 * policy);
  });
}

TEST(ReferencePolicy, ComesBackFromItsCheckpointWhereverItIsKept) {
  runtime::TemporaryFolder folder;
  OnOneRank([&](const parallel::GroupPtr& world) {
    const RolloutBatch batch = MakeRollout();
    for (auto [before, after] : {std::pair{"host", "learner"}, {"learner", "host"}}) {
      const std::string dir = folder / before;
      std::vector<std::vector<float>> want;
      {
        LearnerRun run(before, dir, world);
        ReferencePolicy reference(run.env, run.stage());
        run.Change(21);
        reference.Refresh(4);
        reference.Save();
        run.learner.WaitForSave();
        want = reference.Logprobs(batch, 0);
      }
      LearnerRun run(after, dir, world);
      ReferencePolicy reference(run.env, run.stage());
      reference.Restore(4, "");
      EXPECT_EQ(reference.step(), 4);
      EXPECT_EQ(reference.Logprobs(batch, 0), want);
      // It is on disk as it is, and not written again.
      const std::string saved = run.directory.checkpoints("rl") + "-reference";
      ASSERT_GT(std::filesystem::remove_all(saved), 1u);
      reference.Save();
      run.learner.WaitForSave();
      EXPECT_FALSE(std::filesystem::exists(saved));
    }
  });
}

// It is where the stage began, not what has come there since.
// The reference of a stage that began from `source`, before and after it stopped: meanwhile the
// source went on, and the run moved to `then`.
void ExpectTheReferenceStays(const std::string& source, const std::string& run,
                             const std::string& then) {
  OnOneRank([&](const parallel::GroupPtr& world) {
    const RolloutBatch batch = MakeRollout();
    std::vector<std::vector<float>> want;
    auto with = [&](const std::string& dir, auto body) {
      LearnerRun run("learner", dir, world, {"stages.rl.from=" + source});
      run.directory.fs().MakeDirs(run.directory.root());
      run.state.stages.emplace_back().name = "rl";
      run.metrics =
          std::make_unique<runtime::MetricsWriter>(run.directory.fs(), run.directory.metrics());
      body(run);
    };
    auto save = [&](LearnerRun& run, int64_t step) {
      run.Change(static_cast<uint64_t>(step));
      run.SaveModel(source, step);
    };
    with(run, [&](LearnerRun& run) {
      save(run, 21);
      TrainingLoop loop(run.env, run.stage(), 2);
      ReferencePolicy reference(run.env, run.stage());
      reference.Refresh(0);
      want = reference.Logprobs(batch, 0);
      loop.Save(nlohmann::json::object());
      run.learner.WaitForSave();
      save(run, 22);
    });
    if (then != run) std::filesystem::rename(run, then);
    with(then, [&](LearnerRun& run) {
      TrainingLoop loop(run.env, run.stage(), 2);
      ASSERT_FALSE(loop.resumed().is_null());
      ReferencePolicy reference(run.env, run.stage());
      reference.Restore(0, loop.start());
      EXPECT_EQ(reference.Logprobs(batch, 0), want);
      std::filesystem::remove_all(loop.start());
      EXPECT_THROW(reference.Restore(0, loop.start()), CheckpointError);
    });
  });
}

TEST(ReferencePolicy, OfTheBeginningStaysWhenItsSourceGoesOn) {
  runtime::TemporaryFolder folder;
  ExpectTheReferenceStays(folder / "other/checkpoints/base", folder / "run", folder / "run");
}

TEST(ReferencePolicy, OfTheBeginningMovesWithItsRun) {
  runtime::TemporaryFolder folder;
  ExpectTheReferenceStays(folder / "run/checkpoints/base", folder / "run", folder / "moved");
}

// Killed between reference 400 and checkpoint 400, gone on from 300 without refreshes: all further
// checkpoints name reference 200.
TEST(ReferencePolicy, OneAheadOfAllCheckpointsIsDroppedSoThatTheirsStays) {
  runtime::TemporaryFolder folder;
  auto& fs = runtime::LocalFileSystem();
  const std::string checkpoints = folder / "rl", references = folder / "rl-reference";
  auto commit = [&](const std::string& dir, int64_t step) {
    const std::string path = dir + "/" + runtime::CheckpointStepName(step);
    fs.MakeDirs(path);
    fs.WriteAtomically(path + "/index.h5", "whole");
  };
  using Steps = std::vector<int64_t>;
  for (int64_t step : {200, 300}) commit(checkpoints, step);
  for (int64_t step : {200, 400}) commit(references, step);
  ReferencePolicy::Prune(fs, checkpoints);
  EXPECT_EQ(runtime::ListCheckpointSteps(fs, references), (Steps{200, 400})) << "400 may be next";
  ReferencePolicy::DropAhead(fs, checkpoints);
  EXPECT_EQ(runtime::ListCheckpointSteps(fs, references), Steps{200});
  for (int64_t step : {400, 500}) commit(checkpoints, step);
  for (int64_t step : {200, 300})
    fs.RemoveAll(checkpoints + "/" + runtime::CheckpointStepName(step));
  ReferencePolicy::Prune(fs, checkpoints);
  EXPECT_EQ(runtime::ListCheckpointSteps(fs, references), Steps{200});
  EXPECT_EQ(fs.List(references).size(), 1u) << "nothing half removed";
}

// Rank 1 lists a checkpoint more: both halves of the model are still of one.
TEST(Environment, RanksStartFromWhatRankZeroSees) {
  runtime::TemporaryFolder folder;
  parallel::RunThreadRanks(2, [&](const parallel::GroupPtr& world) {
    const std::vector<std::string> two = {"mesh.pp=2"};
    double want = 0;
    {
      LearnerRun run("learner", folder / "run", world, two);
      run.Change(21);
      want = Sum(run.learner.Weights());
      for (int rank = 0; rank < 2; ++rank) {
        run.SaveModel(folder / fmt::format("rank-{}/checkpoints/rl", rank), 1);
      }
      run.Change(22);
      run.SaveModel(folder / "rank-1/checkpoints/rl", 2);
    }
    LearnerRun run("learner", folder / fmt::format("rank-{}", world->rank()), world, two);
    run.env.LoadStart("rl");
    EXPECT_EQ(Sum(run.learner.Weights()), want);
  });
}

// A reward model's stage leaves the policy without one of its own.
TEST(Environment, LoadsAStartBetweenStagesToo) {
  runtime::TemporaryFolder folder;
  OnOneRank([&](const parallel::GroupPtr& world) {
    LearnerRun run("learner", folder / "run", world);
    run.learner.EndStage();
    run.env.LoadStart("init");
    ASSERT_TRUE(run.learner.in_stage());
    EXPECT_GT(Sum(run.learner.Weights()), 0);
  });
}

}  // namespace
}  // namespace hone::rl
