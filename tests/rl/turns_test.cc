// timeout: 180
// Samples of several turns with an environment, by real workers: what the environment says is what
// was asked for, and neither batches, workers, kills nor new weights leave a trace.
#include <algorithm>
#include <array>

#include "rl/reward/turn_environment.h"
#include "rl/rollout/sequence_reader.h"
#include "tests/rl/worker_testing.h"

namespace hone::rl {
namespace {

class TurnsTest : public WorkerTest {
 protected:
  // A model of random weights does not write <tool>: a call ends with the character that it writes
  // most, and so is all that it wrote since the last answer.
  RolloutPlan WithCalls() {
    static const char common = [this] {
      std::array<int64_t, 128> count{};
      for (const Sample& s : Expected()) {
        for (const SampleToken& t : s.tokens) {
          if (t.source == TokenSource::kModel && t.id < 128) ++count[static_cast<size_t>(t.id)];
        }
      }
      return static_cast<char>(std::max_element(count.begin(), count.end()) - count.begin());
    }();
    RolloutPlan plan = Plan();
    plan.environment.name = "calculator";
    plan.environment.call_begin = "";
    plan.environment.call_end = std::string(1, common);
    plan.environment.answer_begin = "=";
    plan.environment.answer_end = ";";
    plan.environment.max_calls = 3;
    return plan;
  }
  std::vector<Sample> Draw(int workers) {
    RolloutPlan plan = WithCalls();
    StartPool();
    plan.weight_digest = version_.digest;
    coordinator_->Begin(plan);
    StartWorkers(workers);
    std::vector<Sample> samples = Finish(plan);
    StopPool();
    return samples;
  }
};

// Every answer is that of the text since the one before, and is no token of the model.
void CheckAnswers(const Sample& s, const RolloutPlan& plan, int64_t* calls) {
  auto byte = [&](size_t i) {
    int32_t id = s.tokens[i].id;
    return id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
  };
  std::string turn;
  int64_t answers = 0;
  for (size_t i = static_cast<size_t>(s.prompt_tokens()); i < s.tokens.size();) {
    if (s.tokens[i].source == TokenSource::kModel) {
      turn += byte(i++);
      continue;
    }
    std::string answer;
    for (; i < s.tokens.size() && s.tokens[i].source == TokenSource::kEnvironment; ++i) {
      EXPECT_EQ(s.tokens[i].logp, 0.0f);
      EXPECT_EQ(s.tokens[i].weight_version, 0);
      answer += byte(i);
    }
    ASSERT_FALSE(turn.empty());
    EXPECT_EQ(turn.find(plan.environment.call_end), turn.size() - 1) << "drawing stopped there";
    EXPECT_EQ(answer, "=" + AnswerCall("calculator", turn.substr(0, turn.size() - 1)) + ";");
    turn.clear();
    ++answers;
  }
  EXPECT_LE(answers, plan.environment.max_calls);
  EXPECT_EQ(s.rewards.at("tool_calls"), static_cast<double>(answers));
  // A call without an answer ends a sample, as cut.
  if (turn.find(plan.environment.call_end) != std::string::npos) {
    EXPECT_EQ(s.finish, FinishReason::kLength);
  }
  *calls += answers;
}

TEST_F(TurnsTest, AnswersWhatWasAskedAndNothingElseMatters) {
  const RolloutPlan plan = WithCalls();
  const std::vector<Sample> expected = Draw(1);
  int64_t calls = 0, both = 0;
  for (const Sample& s : expected) {
    int64_t before = calls;
    CheckAnswers(s, plan, &calls);
    both += calls - before >= 2;
  }
  EXPECT_GT(calls, 40);
  EXPECT_GT(both, 5) << "samples of three turns and more";
  auto expect_same = [&](const std::vector<Sample>& samples, const std::string& where) {
    ASSERT_EQ(samples.size(), expected.size());
    for (size_t i = 0; i < samples.size(); ++i) {
      EXPECT_TRUE(SameSample(samples[i], expected[i])) << where << ", sample " << i;
    }
  };
  expect_same(Draw(3), "three workers");
  engine_.max_batch = 3;
  engine_.page_size = 4;
  engine_.prefill_chunk = 7;
  expect_same(Draw(2), "small batches");
}

// One forward over the whole sample gives the log-probabilities that its turns recorded.
TEST_F(TurnsTest, TurnsLeaveTheLogProbabilities) {
  engine_.record_routing = true;
  RolloutPlan plan = WithCalls();
  plan.record_routing = true;
  StartPool();
  plan.weight_digest = version_.digest;
  coordinator_->Begin(plan);
  StartWorkers(1);
  std::vector<Sample> samples = Finish(plan);
  StopPool();
  SequenceReader reader(LeaseKind::kLogprob, MoeModel(), DType::kF32, 1);
  runtime::CopySlabs(model_->State(), reader.State());
  reader.set_version(1, "");
  std::vector<Sample> read = samples;
  for (Sample& s : read) {
    for (SampleToken& t : s.tokens) t.logp = 0;
  }
  reader.Read(1.0, &read);
  int64_t answered = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    EXPECT_TRUE(SameSample(read[i], samples[i])) << i;
    answered += samples[i].rewards.at("tool_calls") > 0;
    EXPECT_EQ(samples[i].routing_TLK.size(), (samples[i].tokens.size() - 1) * 2);
  }
  EXPECT_GT(answered, 20);
}

TEST_F(TurnsTest, AWorkerKilledAnotherStoppedAndNewWeightsBetweenTurns) {
  RolloutPlan plan = WithCalls();
  const std::vector<Sample> expected = Draw(1);
  engine_.max_batch = 4;
  StartPool(1);
  plan.weight_digest = version_.digest;
  coordinator_->Begin(plan);
  StartWorkers(2);
  int disturbed = 0;
  std::vector<Sample> samples = Finish(plan, [&](const Coordinator::Progress& p) {
    if (disturbed == 0 && p.done > p.total / 6) {
      workers_[0]->Kill();
      StartWorkers(1);
      ++disturbed;
    } else if (disturbed == 1 && p.done > p.total / 2) {
      workers_[1]->Signal(SIGTERM);
      ++disturbed;
    }
  });
  EXPECT_EQ(disturbed, 2);
  workers_.erase(workers_.begin());
  StopPool();
  for (size_t i = 0; i < samples.size(); ++i) {
    EXPECT_TRUE(SameSample(samples[i], expected[i])) << i;
  }

  // The same, but one by one and with any weights, of which there are new ones half-way.
  engine_.max_batch = 1;
  StartPool(1);
  plan.weight_version = 0;
  plan.weight_digest = "";
  coordinator_->Begin(plan);
  StartWorkers(2);
  bool published = false;
  samples = Finish(plan, [&](const Coordinator::Progress& p) {
    if (published || p.done < p.total / 5) return;
    published = true;
    model_->Initialize(8);
    coordinator_->Publish(publisher_->Publish(*alone_, 2, model_->State()));
  });
  StopPool();
  int64_t calls = 0, drawn[3] = {0, 0, 0};
  for (const Sample& s : samples) {
    CheckAnswers(s, plan, &calls);
    int64_t newest = 1;
    for (const SampleToken& t : s.tokens) {
      if (t.source != TokenSource::kModel) continue;
      ASSERT_GE(t.weight_version, newest) << "older weights after newer ones";
      ASSERT_LE(t.weight_version, 2);
      newest = t.weight_version;
      ++drawn[newest];
    }
  }
  EXPECT_GT(calls, 10);
  EXPECT_GT(drawn[1], 0);
  EXPECT_GT(drawn[2], 0);
}

}  // namespace
}  // namespace hone::rl
