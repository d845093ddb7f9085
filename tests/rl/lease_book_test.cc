// Who draws what, and what is taken: without any wire.
#include "rl/rollout/lease_book.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "runtime/error.h"
#include "tests/read_json.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr milliseconds kLong{60'000}, kShort{5};

class LeaseBookTest : public testing::Test {
 protected:
  LeaseBook Book(milliseconds lease = kLong) {
    return LeaseBook(runtime::LocalFileSystem(), folder_ / "journal", lease, kVocabulary);
  }
  static std::string Accept(LeaseBook& book, const Sample& sample, bool expect_repeat = false) {
    bool repeat = false;
    std::string why = book.Accept(sample, &repeat);
    EXPECT_EQ(repeat, expect_repeat);
    return why;
  }
  static std::set<std::pair<int64_t, int64_t>> Places(const std::vector<OpenLease*>& leases) {
    std::set<std::pair<int64_t, int64_t>> places;
    for (const OpenLease* lease : leases) {
      for (int64_t s : lease->samples) EXPECT_TRUE(places.insert({lease->prompt, s}).second);
    }
    return places;
  }
  runtime::TemporaryFolder folder_;
};

TEST_F(LeaseBookTest, HandsOutEachPlaceOnceAndNoMoreThanAskedFor) {
  LeaseBook book = Book();
  book.Open(TinyPlan(3, 4));
  auto first = book.Take(1, 4, 6);
  EXPECT_EQ(first.size(), 2u);  // four of prompt 0, two of prompt 1
  auto second = book.Take(2, 1, 100);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0]->samples, (std::set<int64_t>{2, 3}));
  auto third = book.Take(1, 4, 100);
  auto all = Places(first);
  for (auto& more : {second, third}) all.merge(Places(more));
  EXPECT_EQ(all.size(), 12u);
  EXPECT_TRUE(book.Take(3, 4, 100).empty());
}

TEST_F(LeaseBookTest, LeasesOfOneAnswerAreOfOnePlanTheEarliest) {
  LeaseBook book = Book();
  RolloutPlan second = TinyPlan(2, 1);
  second.rollout = 1;
  book.Open(TinyPlan(2, 1));
  book.Open(second);
  auto taken = book.Take(1, 10, 10);
  ASSERT_EQ(taken.size(), 2u);
  for (OpenLease* lease : taken) EXPECT_EQ(lease->plan->plan.rollout, 0);
  EXPECT_EQ(book.Take(1, 10, 10)[0]->plan->plan.rollout, 1);
  EXPECT_THROW(book.Open(second), Error);
}

TEST_F(LeaseBookTest, AnExpiredLeaseIsHadByAnotherAndTheFirstIsTold) {
  LeaseBook book = Book(kShort);
  RolloutPlan plan = TinyPlan(1, 3);
  book.Open(plan);
  int64_t id = book.Take(1, 1, 3)[0]->id;
  EXPECT_EQ(Accept(book, FinishedSample(plan, 0, 1)), "");
  std::this_thread::sleep_for(kShort * 3);
  EXPECT_EQ(book.ExpireOld(), 1);
  EXPECT_EQ(book.TakeCancelled(1), std::vector<int64_t>{id});
  EXPECT_TRUE(book.TakeCancelled(1).empty());
  auto again = book.Take(2, 1, 3);
  EXPECT_EQ(Places(again), (std::set<std::pair<int64_t, int64_t>>{{0, 0}, {0, 2}}));
  // Late results of the first worker count; those of the second are then repeats.
  EXPECT_EQ(Accept(book, FinishedSample(plan, 0, 0)), "");
  EXPECT_EQ(Accept(book, FinishedSample(plan, 0, 2)), "");
  EXPECT_TRUE(book.Find("rl", 0)->complete());
  EXPECT_EQ(Accept(book, FinishedSample(plan, 0, 0), true), "");
  EXPECT_EQ(book.Find("rl", 0)->done.size(), 3u);
}

TEST_F(LeaseBookTest, WhatComesLateIsNotHandedOutAgain) {
  LeaseBook book = Book();
  RolloutPlan plan = TinyPlan(1, 3);
  book.Open(plan);
  book.Return(book.Take(1, 1, 3)[0]->id, 1);
  EXPECT_EQ(Accept(book, FinishedSample(plan, 0, 1)), "");  // while nobody holds it
  EXPECT_EQ(Places(book.Take(2, 1, 3)), (std::set<std::pair<int64_t, int64_t>>{{0, 0}, {0, 2}}));
}

TEST_F(LeaseBookTest, RenewedLeasesLast) {
  constexpr milliseconds kLease(1000);
  LeaseBook book = Book(kLease);
  book.Open(TinyPlan(2, 1));
  book.Take(1, 1, 1);
  book.Take(2, 1, 1);
  std::this_thread::sleep_for(kLease + kShort);
  book.Renew(1);
  EXPECT_EQ(book.ExpireOld(), 1);
  EXPECT_TRUE(book.TakeCancelled(1).empty());
  EXPECT_EQ(book.TakeCancelled(2).size(), 1u);
}

TEST_F(LeaseBookTest, ADeadWorkersLeasesComeBack) {
  LeaseBook book = Book();
  book.Open(TinyPlan(3, 2));
  book.Take(1, 2, 10);
  auto other = book.Take(2, 1, 10);
  book.ReturnAllOf(1);
  EXPECT_EQ(book.open_leases(), 1);
  EXPECT_EQ(Places(book.Take(3, 9, 10)).size(), 4u);
  // What another holds cannot be given back, nor twice.
  book.Return(other[0]->id, 1);
  EXPECT_TRUE(book.Take(3, 9, 10).empty());
  book.Return(other[0]->id, 2);
  EXPECT_EQ(Places(book.Take(3, 9, 10)).size(), 2u);
  book.Return(12345);
}

TEST_F(LeaseBookTest, WhatIsGivenBackBegunGoesOnFromThere) {
  LeaseBook book = Book();
  RolloutPlan plan = TinyPlan(1, 2, 6);
  book.Open(plan);
  int64_t lease = book.Take(1, 1, 2)[0]->id;
  Sample begun = FinishedSample(plan, 0, 1, 4);
  begun.finish = FinishReason::kCancelled;
  EXPECT_THAT(Accept(book, begun), HasSubstr("not finished"));
  EXPECT_EQ(book.Continue(begun), "");
  Sample full = FinishedSample(plan, 0, 0, 6);
  full.finish = FinishReason::kCancelled;
  EXPECT_THAT(book.Continue(full), HasSubstr("nothing left to draw"));
  book.Return(lease, 1);
  OpenPlan* open = book.Find("rl", 0);
  ASSERT_EQ(open->partial.size(), 1u);
  EXPECT_EQ(open->partial.at({0, 1}).completion_tokens(), 4);
  EXPECT_EQ(Accept(book, FinishedSample(plan, 0, 1, 5)), "");
  EXPECT_TRUE(open->partial.empty());
  EXPECT_EQ(book.Continue(begun), "");  // too late to matter
  EXPECT_TRUE(open->partial.empty());
  // A partial of a plan that is closed is nothing.
  begun.key.rollout = 9;
  EXPECT_EQ(book.Continue(begun), "");
}

TEST_F(LeaseBookTest, RefusesWhatCannotBeTheSample) {
  LeaseBook book = Book();
  RolloutPlan plan = TinyPlan(2, 2);
  plan.record_routing = true;
  book.Open(plan);
  auto sound = [&] {
    Sample s = FinishedSample(plan, 1, 1);
    s.routing_TLK.assign((s.tokens.size() - 1) * 4, 0);
    return s;
  };
  auto refused = [&](auto spoil, const std::string& why) {
    Sample s = sound();
    spoil(s);
    EXPECT_THAT(Accept(book, s), HasSubstr(why));
  };
  refused([](Sample& s) { s.key.stage = "other"; }, "no rollout 0 of 'other' is under way");
  refused([](Sample& s) { s.key.rollout = 1; }, "no rollout 1 of 'rl' is under way");
  refused([](Sample& s) { s.key.prompt = 2; }, "there is no rl rollout 0 prompt 2");
  refused([](Sample& s) { s.key.sample = 2; }, "prompt 1 sample 2");
  refused([](Sample& s) { s.key.sample = -1; }, "there is no");
  refused([](Sample& s) { ++s.tokens[0].id; }, "other tokens as its prompt");
  refused([](Sample& s) { s.tokens.erase(s.tokens.begin()); }, "other tokens as its prompt");
  refused([](Sample& s) { s.tokens.resize(6); }, "has 0 tokens, 1 to 12");
  refused([](Sample& s) { s.tokens.resize(19, s.tokens.back()); }, "has 13 tokens, 1 to 12");
  refused([](Sample& s) { s.tokens.back().id = kVocabulary; }, "outside the vocabulary");
  refused([](Sample& s) { s.tokens.back().id = -1; }, "outside the vocabulary");
  refused([](Sample& s) { s.tokens.back().source = TokenSource::kPrompt; }, "the prompt's again");
  refused([](Sample& s) { s.tokens.back().weight_version = 2; }, "drawn with weights 2, not 1");
  refused([](Sample& s) { s.tokens.back().logp = NAN; }, "log-probability nan");
  refused([](Sample& s) { s.tokens.back().logp = 0.5f; }, "log-probability 0.5");
  refused([](Sample& s) { s.tokens.back().logp = -std::numeric_limits<float>::infinity(); },
          "log-probability -inf");
  refused([](Sample& s) { s.rewards["format"] = NAN; }, "reward format");
  refused([](Sample& s) { s.routing_TLK.pop_back(); }, "expert choices");
  refused([](Sample& s) { s.routing_TLK.clear(); }, "expert choices");
  EXPECT_TRUE(book.Find("rl", 0)->done.empty());
  EXPECT_EQ(Accept(book, sound()), "");
  EXPECT_EQ(book.Find("rl", 0)->done.size(), 1u);
}

TEST_F(LeaseBookTest, WithAnyWeightsEveryVersionIsTaken) {
  LeaseBook book = Book();
  RolloutPlan plan = TinyPlan(1, 1);
  plan.weight_version = 0;
  plan.weight_digest = "";
  book.Open(plan);
  Sample s = FinishedSample(plan, 0, 0, 2);
  s.tokens[5].weight_version = 4;
  s.tokens[6].weight_version = 5;  // weights changed in its middle
  EXPECT_EQ(Accept(book, s), "");
}

TEST_F(LeaseBookTest, ClosingGivesPromptOrderAndToleratesLateRepeats) {
  LeaseBook book = Book();
  RolloutPlan plan = TinyPlan(2, 2);
  book.Open(plan);
  int64_t lease = book.Take(1, 1, 2)[0]->id;
  for (auto [p, s] : {std::pair{1, 1}, {0, 1}, {1, 0}, {0, 0}}) {
    Accept(book, FinishedSample(plan, p, s));
    book.Commit();
  }
  book.Take(2, 9, 9);
  std::vector<Sample> samples = book.Close(book.Find("rl", 0));
  ASSERT_EQ(samples.size(), 4u);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(SameSample(samples[i], FinishedSample(plan, i / 2, i % 2)));
  }
  EXPECT_EQ(book.Find("rl", 0), nullptr);
  EXPECT_EQ(book.open_leases(), 0);
  book.Return(lease, 1);
  EXPECT_EQ(Accept(book, FinishedSample(plan, 1, 0), true), "");
  // The same for people: one line a sample, in the same order.
  std::string jsonl =
      runtime::LocalFileSystem().ReadAll(folder_ / "rollouts/rl/rollout-000000.jsonl");
  EXPECT_EQ(std::count(jsonl.begin(), jsonl.end(), '\n'), 4);
  auto line = ParseJson(jsonl.substr(0, jsonl.find('\n')));
  EXPECT_EQ(line["prompt"], 0);
  EXPECT_EQ(line["outcome"], "correct");
  EXPECT_EQ(line["rewards"]["format"], 0.5);
}

TEST_F(LeaseBookTest, AReopenedPlanAsksOnlyForWhatIsMissing) {
  RolloutPlan plan = TinyPlan(2, 2);
  {
    LeaseBook book = Book();
    book.Open(plan);
    Accept(book, FinishedSample(plan, 0, 1));
    Accept(book, FinishedSample(plan, 1, 0));
    book.Commit();
    Accept(book, FinishedSample(plan, 1, 1));  // never committed: lost with the process
  }
  {
    LeaseBook book = Book();
    plan.weight_version = 2;  // published anew, the same weights
    book.Open(plan);
    EXPECT_EQ(Places(book.Take(1, 9, 9)), (std::set<std::pair<int64_t, int64_t>>{{0, 0}, {1, 1}}));
    EXPECT_EQ(Accept(book, FinishedSample(plan, 0, 1), true), "");
  }
  auto missing = [&](const RolloutPlan& changed) {
    LeaseBook book = Book();
    book.Open(changed);
    return Places(book.Take(1, 9, 99)).size();
  };
  plan.group_size = 3;  // a larger group keeps what the smaller one drew
  EXPECT_EQ(missing(plan), 4u);
  plan.sampling.temperature = 0.5;  // another distribution keeps nothing
  EXPECT_EQ(missing(plan), 6u);
}

}  // namespace
}  // namespace hone::rl
