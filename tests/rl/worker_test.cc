// timeout: 180
// Real workers, as processes of their own, against a coordinator and weights of this process: the
// same samples whatever their number, their batches and what befalls them.
#include "tests/rl/worker_testing.h"

namespace hone::rl {
namespace {

using testing::HasSubstr;

TEST_F(WorkerTest, AnyNumberOfWorkersAnyBatchTheSameSamples) {
  const std::vector<Sample>& expected = Expected();
  ASSERT_EQ(expected.size(), static_cast<size_t>(kPrompts * kGroup));
  std::set<std::string> texts;
  for (const Sample& s : expected) texts.insert(s.text);
  EXPECT_GT(texts.size(), expected.size() / 2) << "the samples are hardly different";
  for (int workers : {2, 5}) {
    ExpectTheSame(DrawWith(workers), fmt::format("{} workers", workers));
  }
  engine_.max_batch = 3;
  engine_.page_size = 4;
  engine_.prefill_chunk = 7;
  ExpectTheSame(DrawWith(2), "small batches");
}

TEST_F(WorkerTest, OneKilledHalfWayAnotherStoppedAThirdLate) {
  Expected();
  engine_.max_batch = 4;  // so that there is a half-way
  StartPool();
  RolloutPlan plan = Plan();
  coordinator_->Begin(plan);
  StartWorkers(2);
  bool killed = false, stopped = false;
  std::vector<Sample> samples = Finish(plan, [&](const Coordinator::Progress& p) {
    if (!killed && p.done > p.total / 6) {
      workers_[0]->Kill();
      killed = true;
      StartWorkers(1);
    } else if (killed && !stopped && p.done > p.total / 2) {
      workers_[1]->Signal(SIGTERM);
      stopped = true;
    }
  });
  EXPECT_TRUE(killed);
  workers_.erase(workers_.begin());
  ExpectTheSame(samples, "disturbed");
  PoolStats stats = coordinator_->stats();
  int64_t counted = 0;
  for (auto& [outcome, n] : stats.outcomes) counted += n;
  EXPECT_EQ(counted, kPrompts * kGroup) << "a sample was counted twice or not at all";
  StopPool();
}

// Colocated: between two rollouts the learner has the memory. One that dies in its turn holds none.
TEST_F(WorkerTest, WorkersThatTakeTurnsDrawTheSame) {
  Expected();
  engine_.max_batch = 4;
  engine_.lazy_cache = true;
  StartPool();
  StartWorkers(2);
  for (int rollout = 0; rollout < 2; ++rollout) {
    RolloutPlan plan = Plan();
    coordinator_->Begin(plan);
    coordinator_->GiveMemory();
    bool killed = rollout > 0;
    std::vector<Sample> samples = Finish(plan, [&](const Coordinator::Progress& p) {
      if (killed || p.done < p.total / 6) return;
      killed = true;
      workers_[0]->Kill();
    });
    EXPECT_TRUE(killed);
    ExpectTheSame(samples, fmt::format("turn {}", rollout));
    coordinator_->TakeMemory(std::chrono::seconds(20));
  }
  workers_.erase(workers_.begin());
  // In the learner's turn nobody draws.
  coordinator_->Begin(Plan());
  EXPECT_THROW(coordinator_->Finish("rl", 0, milliseconds(1500),
                                    [](const Coordinator::Progress& p) {
                                      EXPECT_EQ(p.done, 0);
                                      return true;
                                    }),
               TimeoutError);
  StopPool();
}

// Weights change in the middle: what is half drawn goes on with the new ones, and every token says
// which drew it.
TEST_F(WorkerTest, NewWeightsInTheMiddleOfARollout) {
  engine_.max_batch = 4;
  StartPool(1);
  RolloutPlan plan = Plan();
  plan.weight_version = 0;
  plan.weight_digest = "";
  coordinator_->Begin(plan);
  StartWorkers(2);
  bool published = false;
  std::vector<Sample> samples = Finish(plan, [&](const Coordinator::Progress& p) {
    if (published || p.done < p.total / 5) return;
    published = true;
    model_->Initialize(8);
    coordinator_->Publish(publisher_->Publish(*alone_, 2, model_->State()));
  });
  ASSERT_TRUE(published);
  int64_t drawn[3] = {0, 0, 0};
  for (const Sample& s : samples) {
    int64_t newest = 1;
    for (const SampleToken& t : s.tokens) {
      if (t.source != TokenSource::kModel) continue;
      ASSERT_GE(t.weight_version, newest) << "older weights after newer ones";
      newest = t.weight_version;
      ASSERT_LE(newest, 2);
      ++drawn[newest];
    }
  }
  EXPECT_GT(drawn[1], 0);
  EXPECT_GT(drawn[2], 0);
  StopPool();
}

TEST_F(WorkerTest, ARefusedWorkerSaysWhyAndEnds) {
  StartPool();
  WorkerProcess stranger(coordinator_->address(), Log(), "not the secret");
  EXPECT_EQ(stranger.Wait(), 1);
  EXPECT_THAT(LogText(), HasSubstr("wrong secret"));
  coordinator_.reset();
  StartPool(2, "another model");
  WorkerProcess other(coordinator_->address(), Log());
  EXPECT_EQ(other.Wait(), 1);
  EXPECT_THAT(LogText(), HasSubstr("where the run trains another model"));
}

// What one coordinator left unfinished, the next one has drawn the same.
TEST_F(WorkerTest, AnotherCoordinatorAnotherWorkerTheSameSamples) {
  Expected();
  StartPool();
  coordinator_->Begin(Plan());
  StartWorkers(1);
  bool gone = false;
  try {
    coordinator_->Finish("rl", 0, std::chrono::seconds(20),
                         [&](const Coordinator::Progress& p) { return p.done < 20; });
  } catch (const StoppedEarly&) {
    gone = true;
  }
  ASSERT_TRUE(gone);
  StopPool();  // tells workers to end
  StartPool();
  coordinator_->Begin(Plan());
  StartWorkers(1);
  ExpectTheSame(Finish(Plan()), "after a restart");
  StopPool();
}

// A prompt that does not fit is no reason to die: the lease goes back with the reason.
TEST_F(WorkerTest, ALeaseThatCannotBeWorkedOnComesBack) {
  StartPool(8);
  RolloutPlan plan = Plan();
  plan.prompts[1].tokens = PromptTokens(kContext, 1);
  coordinator_->Begin(plan);
  StartWorkers(1);
  constexpr int64_t kOthers = (kPrompts - 1) * kGroup;
  int64_t done = 0;
  testing::internal::CaptureStderr();
  EXPECT_THROW(
      coordinator_->Finish("rl", 0, std::chrono::seconds(60),
                           [](const Coordinator::Progress& p) { return p.done < kOthers; }),
      StoppedEarly);
  EXPECT_THROW(coordinator_->Finish("rl", 0, milliseconds(500),
                                    [&](const Coordinator::Progress& p) {
                                      done = p.done;
                                      return true;
                                    }),
               TimeoutError);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("gave leases back: [engine] request"));
  EXPECT_EQ(done, kOthers) << "the other prompts' samples";
  StopPool();
}

}  // namespace
}  // namespace hone::rl
