// timeout: 180
// Leases of kind logprob and score, by real workers: the bits of the learner's own forward passes,
// whatever befalls the workers and whatever else they do meanwhile.
#include <cmath>
#include <filesystem>

#include "parallel/train_engine.h"
#include "rl/policy_loss.h"
#include "rl/reward_model_loss.h"
#include "rl/rollout/lease_book.h"
#include "rl/stages/rollout_batch.h"
#include "tests/rl/worker_testing.h"

namespace hone::rl {
namespace {

using testing::HasSubstr;

constexpr char kReference[] = "reference";

// The samples without what a reader is to find out.
std::vector<Sample> Bare(const std::vector<Sample>& samples) {
  std::vector<Sample> bare;
  for (const Sample& s : samples) {
    bare.emplace_back().key = s.key;
    for (const SampleToken& t : s.tokens) bare.back().tokens.push_back({t.id, t.source, 0, 0});
  }
  return bare;
}

RolloutPlan ReadingPlan(LeaseKind kind, const WeightVersion& weights,
                        const std::vector<Sample>& samples) {
  RolloutPlan plan;
  plan.kind = kind;
  plan.stage = "rl/reading";
  plan.weight_version = weights.version;
  plan.weight_digest = weights.digest;
  plan.given = Bare(samples);
  return plan;
}

class ReadingTest : public WorkerTest {
 protected:
  // Makes `model` the pinned version, a later number than the policy's.
  WeightVersion Pin(model::TransformerStage& model, int64_t version) {
    WeightVersion pinned = publisher_->Publish(*alone_, version, model.State(), kReference);
    coordinator_->Publish(pinned, kReference);
    return pinned;
  }
  // What a TrainEngine over `model` says, packed as learners pack: logp of every completion token.
  std::vector<std::vector<double>> ByTheLearner(model::TransformerStage& model,
                                                const std::vector<Sample>& samples,
                                                double temperature) {
    parallel::Mesh mesh(parallel::MeshConfig{}, alone_);
    parallel::TrainEngine engine(ctx_, mesh, {&model}, {});
    RolloutBatch rollout;
    rollout.samples = samples;
    rollout.advantage.assign(samples.size(), 0.0);
    std::vector<int64_t> all(samples.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
    BatchConfig packs;
    packs.pack_tokens = 512;
    LearnerBatches data = MakeLearnerBatches(rollout, all, GrpoConfig{}, packs, 1, 0);
    PolicyLossConfig loss;
    loss.temperature = temperature;
    loss.kl_coefficient = 0;
    auto outcomes = engine.Evaluate(data.microbatches, PolicyLoss(loss), true);
    std::vector<std::vector<double>> logp(samples.size());
    for (size_t m = 0; m < outcomes.size(); ++m) {
      const auto values = runtime::ToDoubles(outcomes[m].head.logp_T);
      for (size_t s = 0; s < data.samples[m].size(); ++s) {
        const auto which = static_cast<size_t>(data.samples[m][s]);
        const int64_t begin = data.microbatches[m].cu_seqlens[s];
        for (size_t i = static_cast<size_t>(samples[which].prompt_tokens());
             i < samples[which].tokens.size(); ++i) {
          logp[which].push_back(values[static_cast<size_t>(begin) + i - 1]);
        }
      }
    }
    return logp;
  }
  static void ExpectLogprobs(const std::vector<Sample>& read,
                             const std::vector<std::vector<double>>& want, int64_t version) {
    ASSERT_EQ(read.size(), want.size());
    for (size_t s = 0; s < read.size(); ++s) {
      const auto prompt = static_cast<size_t>(read[s].prompt_tokens());
      for (size_t i = prompt; i < read[s].tokens.size(); ++i) {
        EXPECT_EQ(read[s].tokens[i].logp, static_cast<float>(want[s][i - prompt])) << s << " " << i;
        EXPECT_EQ(read[s].tokens[i].weight_version, version);
      }
    }
  }
  std::unique_ptr<model::TransformerStage> Other(uint64_t seed) {
    return MakeModel(ctx_, MoeModel(), seed);
  }
};

TEST_F(ReadingTest, WithThePolicysWeightsWhatWasRecorded) {
  const std::vector<Sample> samples = Expected();
  StartPool();
  const WeightVersion pinned = Pin(*model_, 2);
  coordinator_->Begin(ReadingPlan(LeaseKind::kLogprob, pinned, samples));
  StartWorkers(2);
  const std::vector<Sample> read = Finish(ReadingPlan(LeaseKind::kLogprob, pinned, samples));
  StopPool();
  ASSERT_EQ(read.size(), samples.size());
  for (size_t s = 0; s < read.size(); ++s) {
    for (size_t i = 0; i < read[s].tokens.size(); ++i) {
      ASSERT_EQ(read[s].tokens[i].logp, samples[s].tokens[i].logp) << s << " " << i;
    }
  }
}

// A worker is killed half-way, another comes late; sampling goes on meanwhile with weights that
// change twice, while the reference stays.
TEST_F(ReadingTest, TheLearnersBitsWhateverBefallsTheWorkers) {
  const std::vector<Sample> samples = Expected();
  auto reference = Other(11);
  const auto want = ByTheLearner(*reference, samples, 0.7);
  StartPool(1);
  const WeightVersion pinned = Pin(*reference, 2);
  RolloutPlan reading = ReadingPlan(LeaseKind::kLogprob, pinned, samples);
  reading.sampling.temperature = 0.7;
  RolloutPlan drawing = Plan();
  drawing.weight_version = 0;
  drawing.weight_digest = "";
  coordinator_->Begin(drawing);
  StartWorkers(2);
  std::this_thread::sleep_for(milliseconds(200));
  for (int64_t version : {3, 4}) {
    coordinator_->Publish(publisher_->Publish(*alone_, version, model_->State()));
  }
  coordinator_->Begin(reading);
  bool killed = false;
  const std::vector<Sample> read = Finish(reading, [&](const Coordinator::Progress& p) {
    if (killed || p.done < p.total / 8) return;
    killed = true;
    workers_[0]->Kill();
    StartWorkers(1);
  });
  EXPECT_TRUE(killed) << "it was over too soon";
  workers_.erase(workers_.begin());
  StopPool();
  ExpectLogprobs(read, want, 2);
}

TEST_F(ReadingTest, ValuesAreTheRewardModels) {
  const std::vector<Sample> samples = Expected();
  model::ModelConfig config = MoeModel();
  config.value_head = true;
  auto scorer = MakeModel(ctx_, config, 5);
  StartPool();
  const WeightVersion pinned = Pin(*scorer, 2);
  const RolloutPlan plan = ReadingPlan(LeaseKind::kScore, pinned, samples);
  coordinator_->Begin(plan);
  StartWorkers(2);
  const std::vector<Sample> read = Finish(plan);
  StopPool();
  std::vector<data::TokenSequence> sequences(samples.size());
  std::vector<const data::TokenSequence*> pointers;
  for (size_t i = 0; i < samples.size(); ++i) {
    for (const SampleToken& t : samples[i].tokens) sequences[i].tokens.push_back(t.id);
    sequences[i].weight.assign(samples[i].tokens.size(), 0.0f);
    pointers.push_back(&sequences[i]);
  }
  TokenBatch batch = data::MakeBatch(pointers);
  for (size_t i = 0; i < samples.size(); ++i) batch.sample_S.push_back(static_cast<int32_t>(2 * i));
  const RewardModelLoss loss(PreferenceMode::kPointwise);
  scorer->BeginStep(/*keep_head_output=*/true);
  scorer->Forward(ctx_, 0, batch, {}, &loss, /*train=*/false);
  const auto values = runtime::ToDoubles(scorer->TakeOutcome(0).head.value_T);
  std::set<double> different;
  for (size_t i = 0; i < read.size(); ++i) {
    const double want = values[static_cast<size_t>(batch.cu_seqlens[i + 1]) - 1];
    EXPECT_EQ(read[i].rewards.at("value"), want) << i;
    different.insert(want);
  }
  EXPECT_GT(different.size(), samples.size() / 2);
}

// Two newer versions, and what is still to be drawn by an older one cannot be: said at once.
TEST_F(ReadingTest, APlanWhoseWeightsWentIsSaidAtOnce) {
  StartPool();
  coordinator_->Begin(Plan());
  for (int64_t version : {3, 4}) {
    coordinator_->Publish(publisher_->Publish(*alone_, version, model_->State()));
  }
  StartWorkers(1);
  try {
    Finish(Plan());
    ADD_FAILURE() << "drawn by which weights?";
  } catch (const IoError& e) {
    EXPECT_THAT(e.what(), HasSubstr("weights 1, which 'rl' rollout 0 is for, are gone"));
  }
  StopPool();
}

TEST_F(ReadingTest, ReleasedWeightsReadNothing) {
  const std::vector<Sample> samples = Expected();
  StartPool();
  const WeightVersion pinned = Pin(*model_, 2);
  publisher_->Release(kReference);
  coordinator_->Begin(ReadingPlan(LeaseKind::kLogprob, pinned, samples));
  StartWorkers(1);
  testing::internal::CaptureStderr();
  // More leases than prompts: some came back.
  EXPECT_THROW(coordinator_->Finish(
                   "rl/reading", 0, std::chrono::seconds(60),
                   [](const Coordinator::Progress& p) { return p.pool.leased <= kPrompts; }),
               StoppedEarly);
  EXPECT_THROW(coordinator_->Finish("rl/reading", 0, milliseconds(500),
                                    [](const Coordinator::Progress& p) {
                                      EXPECT_EQ(p.done, 0);
                                      return true;
                                    }),
               TimeoutError);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("weights 2 are gone"));
  coordinator_->Release(kReference);
  RolloutPlan plan = ReadingPlan(LeaseKind::kLogprob, pinned, samples);
  plan.rollout = 1;
  EXPECT_THROW(coordinator_->Begin(plan), Error);
  StopPool();
}

// ---- What the lease book takes ------------------------------------------------------------------

class ReadingBookTest : public testing::Test {
 protected:
  ReadingBookTest() {
    for (int64_t p = 0; p < 2; ++p) {
      for (int64_t s = 0; s < 3; ++s) samples_.push_back(FinishedSample(drawing_, p, s));
    }
  }
  LeaseBook Book() {
    return LeaseBook(runtime::LocalFileSystem(), folder_ / "journal", milliseconds(60'000),
                     kVocabulary);
  }
  RolloutPlan Reading(LeaseKind kind) const { return ReadingPlan(kind, {7, "d7", {}}, samples_); }
  // As a sound worker hands it in.
  Sample Read(LeaseKind kind, size_t which) const {
    Sample s = Bare(samples_)[which];
    s.key.stage = "rl/reading";
    if (kind == LeaseKind::kScore) s.rewards["value"] = 0.5;
    for (SampleToken& t : s.tokens) {
      if (kind != LeaseKind::kLogprob || t.source != TokenSource::kModel) continue;
      t.logp = -1.5f;
      t.weight_version = 7;
    }
    return s;
  }
  static std::string Accept(LeaseBook& book, const Sample& sample) {
    bool repeat = false;
    return book.Accept(sample, &repeat);
  }
  RolloutPlan drawing_ = TinyPlan(2, 3);
  std::vector<Sample> samples_;
  runtime::TemporaryFolder folder_;
};

TEST_F(ReadingBookTest, ReadingComesBeforeDrawing) {
  LeaseBook book = Book();
  book.Open(drawing_);
  book.Open(Reading(LeaseKind::kLogprob));
  auto leases = book.Take(1, 4, 100, 4);
  ASSERT_EQ(leases.size(), 2u);
  for (OpenLease* lease : leases) EXPECT_TRUE(lease->plan->reads());
  EXPECT_EQ(leases[0]->samples.size() + leases[1]->samples.size(), 4u) << "no more than asked for";
  auto drawing = book.Take(1, 1, 2, 0);
  ASSERT_EQ(drawing.size(), 1u) << "a worker that reads already may draw";
  EXPECT_FALSE(drawing[0]->plan->reads());
  EXPECT_EQ(book.Take(2, 4, 0, 100).size(), 1u) << "the rest, for one that has no room to draw";
  EXPECT_TRUE(book.Take(2, 4, 0, 100).empty());
}

TEST_F(ReadingBookTest, RefusesWhatWasNotAskedFor) {
  LeaseBook book = Book();
  book.Open(Reading(LeaseKind::kLogprob));
  auto refused = [&](const std::function<void(Sample&)>& change) {
    Sample s = Read(LeaseKind::kLogprob, 0);
    change(s);
    return Accept(book, s);
  };
  EXPECT_THAT(refused([](Sample& s) { s.key.prompt = 9; }), HasSubstr("there is no"));
  EXPECT_THAT(refused([](Sample& s) { ++s.tokens[1].id; }), HasSubstr("other tokens"));
  EXPECT_THAT(refused([](Sample& s) { s.tokens.pop_back(); }), HasSubstr("other tokens"));
  EXPECT_THAT(refused([](Sample& s) { s.tokens.back().source = TokenSource::kEnvironment; }),
              HasSubstr("other tokens"));
  EXPECT_THAT(refused([](Sample& s) { s.tokens.back().logp = 0.1f; }),
              HasSubstr("log-probability 0.1"));
  EXPECT_THAT(refused([](Sample& s) { s.tokens.back().logp = NAN; }), HasSubstr("nan"));
  EXPECT_THAT(refused([](Sample& s) { s.tokens.back().weight_version = 6; }),
              HasSubstr("weights 6, not 7"));
  EXPECT_EQ(refused([](Sample&) {}), "");
  EXPECT_THAT(book.Continue(Read(LeaseKind::kLogprob, 1)), HasSubstr("whole or not"));
}

TEST_F(ReadingBookTest, AScoreNeedsAFiniteValue) {
  LeaseBook book = Book();
  book.Open(Reading(LeaseKind::kScore));
  Sample s = Read(LeaseKind::kScore, 0);
  s.rewards.clear();
  EXPECT_THAT(Accept(book, s), HasSubstr("no finite value"));
  s.rewards["value"] = INFINITY;
  EXPECT_THAT(Accept(book, s), HasSubstr("no finite value"));
  EXPECT_EQ(Accept(book, Read(LeaseKind::kScore, 0)), "");
}

TEST_F(ReadingBookTest, IsJournalledAndGoesOn) {
  {
    LeaseBook book = Book();
    book.Open(Reading(LeaseKind::kLogprob));
    for (size_t i : {0u, 4u}) EXPECT_EQ(Accept(book, Read(LeaseKind::kLogprob, i)), "");
    book.Commit();
  }
  {
    LeaseBook book = Book();
    book.Open(Reading(LeaseKind::kLogprob));
    OpenPlan* plan = book.Find("rl/reading", 0);
    EXPECT_EQ(plan->done.size(), 2u);
    EXPECT_EQ(plan->waiting.size(), 4u);
    for (size_t i : {1u, 2u, 3u, 5u}) EXPECT_EQ(Accept(book, Read(LeaseKind::kLogprob, i)), "");
    const std::vector<Sample> all = book.Close(plan);
    ASSERT_EQ(all.size(), 6u);
    for (size_t i = 0; i < 6; ++i) EXPECT_TRUE(SameSample(all[i], Read(LeaseKind::kLogprob, i)));
    EXPECT_FALSE(std::filesystem::exists(folder_ / "rollouts"))
        << "what was drawn stands elsewhere";
  }
  // Of other samples, or by other weights, nothing is taken over.
  for (bool other_weights : {true, false}) {
    LeaseBook book = Book();
    RolloutPlan plan = Reading(LeaseKind::kLogprob);
    if (other_weights) {
      plan.weight_digest = "d8";
    } else {
      plan.given[3].tokens.back().id ^= 1;
    }
    book.Open(plan);
    EXPECT_EQ(book.Find("rl/reading", 0)->done.size(), 0u);
  }
}

}  // namespace
}  // namespace hone::rl
