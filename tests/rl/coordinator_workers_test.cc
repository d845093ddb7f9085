// The coordinator and its workers over time: who gets on, falls silent, dies, waits, or holds the
// memory that the learner wants.
#include <atomic>
#include <thread>

#include "rl/rollout/coordinator.h"
#include "rl/rollout/worker_session.h"
#include "runtime/error.h"
#include "tests/rl/coordinator_testing.h"

namespace hone::rl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

TEST_F(CoordinatorTest, LeasesOfTheSilentAreReissuedThoseOfTheBusyAreNot) {
  Coordinator::Options options = Options();
  options.lease = milliseconds(1500);
  options.heartbeat = milliseconds(100'000);
  RolloutPlan plan = TinyPlan(2, 2);
  auto coordinator = Begin(options, plan);
  Client silent(coordinator->address()), busy(coordinator->address()),
      third(coordinator->address());
  for (Client* c : {&silent, &busy, &third}) ASSERT_TRUE(c->Register().ok());
  proto::LeaseReply one, two, none;
  ASSERT_TRUE(silent.Take(2, &one).ok());
  ASSERT_TRUE(busy.Take(2, &two).ok());
  ASSERT_TRUE(third.Take(9, &none).ok());
  EXPECT_EQ(none.leases_size(), 0);
  // Both live, but only one gets on.
  proto::HeartbeatReply beat;
  std::vector<int64_t> cancelled;
  for (int64_t i = 1; i <= 500 && cancelled.empty(); ++i) {
    std::this_thread::sleep_for(milliseconds(20));
    ASSERT_TRUE(silent.Heartbeat(5, &beat).ok());
    cancelled.insert(cancelled.end(), beat.cancelled_leases().begin(),
                     beat.cancelled_leases().end());
    ASSERT_TRUE(busy.Heartbeat(i, &beat).ok());
    EXPECT_EQ(beat.cancelled_leases_size(), 0) << "a lease of the busy one was taken away";
  }
  EXPECT_EQ(cancelled, std::vector<int64_t>{one.leases(0).lease()});
  proto::LeaseReply again;
  ASSERT_TRUE(third.Take(9, &again, 2000).ok());
  ASSERT_EQ(again.leases_size(), 1);
  EXPECT_EQ(again.leases(0).prompt(), one.leases(0).prompt());
  EXPECT_GE(coordinator->stats().reissued, 1);
}

// What a wait that is to end when nobody gets on looks at.
TEST_F(CoordinatorTest, AWaitSeesWhenAWorkerGotOnLast) {
  auto coordinator = Begin(Options(), TinyPlan(1, 1));
  Client worker = Registered(*coordinator);
  proto::HeartbeatReply beat;
  auto last_progress = [&] {
    Coordinator::Progress seen;
    auto look = [&](const Coordinator::Progress& progress) {
      seen = progress;
      return false;
    };
    EXPECT_THROW(coordinator->Finish("rl", 0, std::chrono::seconds(60), look), StoppedEarly);
    return seen.last_progress;
  };
  auto before = std::chrono::steady_clock::now();
  ASSERT_TRUE(worker.Heartbeat(1, &beat).ok());
  const auto first = last_progress();
  EXPECT_GE(first, before);
  ASSERT_TRUE(worker.Heartbeat(1, &beat).ok());
  EXPECT_EQ(last_progress(), first) << "it lives, and does not get on";
  before = std::chrono::steady_clock::now();
  ASSERT_TRUE(worker.Heartbeat(2, &beat).ok());
  EXPECT_GE(last_progress(), before);
}

// Workers tell sums; what they told stays when they are gone.
TEST_F(CoordinatorTest, WeightsThatPassedHostsAreCountedOnce) {
  Coordinator::Options options = Options();
  options.heartbeat = milliseconds(50);
  auto coordinator = Start(options);
  proto::HeartbeatReply beat;
  for (int64_t expected : {9, 18}) {
    Client worker = Registered(*coordinator);
    for (int64_t sum : {5, 5, 9}) ASSERT_TRUE(worker.Heartbeat(1, &beat, sum).ok());
    EXPECT_EQ(coordinator->stats().weight_host_bytes, expected);
  }
  for (int i = 0; i < 500 && coordinator->stats().workers > 0; ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_EQ(coordinator->stats().workers, 0);
  EXPECT_EQ(coordinator->stats().weight_host_bytes, 18);
}

TEST_F(CoordinatorTest, TheDeadAreForgottenAndTheirWorkGoesOn) {
  Coordinator::Options options = Options();
  options.heartbeat = milliseconds(50);
  RolloutPlan plan = TinyPlan(2, 2);
  auto coordinator = Begin(options, plan);
  Client dead = Registered(*coordinator);
  proto::LeaseReply leases;
  ASSERT_TRUE(dead.Take(3, &leases).ok());
  proto::SubmitRequest begun;  // part of its work came back before it died
  Sample half = FinishedSample(plan, 0, 1, 2);
  half.finish = FinishReason::kCancelled;
  *begun.add_continued() = ToProto(half);
  ASSERT_TRUE(dead.Submit(begun, &dead.submitted).ok());
  for (int i = 0; i < 200 && coordinator->stats().workers > 0; ++i) {
    std::this_thread::sleep_for(milliseconds(20));
  }
  EXPECT_EQ(coordinator->stats().workers, 0);
  ExpectRefused(dead.Submit({}), grpc::StatusCode::NOT_FOUND, "not registered");
  Client other = Registered(*coordinator);
  proto::LeaseReply again;
  ASSERT_TRUE(other.Take(4, &again).ok());
  ASSERT_EQ(again.leases_size(), 2);
  ASSERT_EQ(again.leases(0).partial_size(), 1);
  EXPECT_TRUE(SameSample(FromProto(again.leases(0).partial(0)), half));
}

// A worker is not dead for what the coordinator could not hear, busy with a slow disk.
TEST_F(CoordinatorTest, NobodyDiesWhileTheDiskIsSlow) {
  Coordinator::Options options = Options();
  options.heartbeat = milliseconds(200);  // silent for five of them: dead
  std::atomic<bool> slow = false;
  runtime::FaultyFileSystem fs(runtime::LocalFileSystem(),
                               [&](const std::string& op, const std::string&, int64_t) {
                                 if (op == "sync" && slow.exchange(false)) {
                                   std::this_thread::sleep_for(6 * options.heartbeat);
                                 }
                                 return std::string();
                               });
  const RolloutPlan plan = TinyPlan(2, 2);
  auto coordinator = Start(options, fs);
  coordinator->Begin(plan);
  Client worker = Registered(*coordinator);
  proto::LeaseReply leases;
  ASSERT_TRUE(worker.Take(4, &leases).ok());
  slow = true;
  ASSERT_TRUE(worker.Submit({FinishedSample(plan, 0, 0)}).ok());
  ASSERT_FALSE(slow);
  std::this_thread::sleep_for(milliseconds(50));  // the housekeeper looks
  proto::HeartbeatReply beat;
  EXPECT_TRUE(worker.Heartbeat(1, &beat).ok());
  EXPECT_EQ(beat.cancelled_leases_size(), 0);
  EXPECT_EQ(coordinator->stats().workers, 1);
  EXPECT_EQ(coordinator->stats().reissued, 0);
}

// More workers than the coordinator has threads call meanwhile: none of them is lost.
TEST_F(CoordinatorTest, ACrowdOutlastsASlowDisk) {
  std::atomic<bool> slow = false, asleep = false;
  runtime::FaultyFileSystem fs(runtime::LocalFileSystem(),
                               [&](const std::string& op, const std::string&, int64_t) {
                                 if (op == "sync" && slow.exchange(false)) {
                                   asleep = true;
                                   std::this_thread::sleep_for(milliseconds(700));
                                 }
                                 return std::string();
                               });
  const RolloutPlan plan = TinyPlan(2, 2);
  auto coordinator = Start(Options(), fs);
  coordinator->Begin(plan);
  Client worker = Registered(*coordinator);
  std::vector<std::unique_ptr<Session>> crowd;
  for (int i = 0; i < 100; ++i) {
    crowd.push_back(std::make_unique<Session>("one of many", Security{kSecret, "", "", ""},
                                              coordinator->address(), Device::Cpu()));
    crowd.back()->Register("m");
  }
  slow = true;
  std::vector<std::thread> threads;
  threads.emplace_back([&] { EXPECT_TRUE(worker.Submit({FinishedSample(plan, 0, 0)}).ok()); });
  while (!asleep) std::this_thread::yield();
  for (auto& session : crowd) {
    threads.emplace_back([s = session.get()] { EXPECT_NO_THROW(s->TakeLeases(0, 0, 0, false)); });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(coordinator->stats().workers, 101);
}

// Learner and workers take turns with the memory of a device.
TEST_F(CoordinatorTest, MemoryIsHandedToAndFro) {
  Coordinator::Options options = Options();
  options.colocated = true;
  RolloutPlan plan = TinyPlan(2, 1);
  auto coordinator = Begin(options, plan);
  Client worker = Registered(*coordinator);
  proto::LeaseReply reply;
  // The learner's turn comes first: no leases, and nothing to be released.
  ASSERT_TRUE(worker.Take(8, &reply, 50, /*memory_released=*/true).ok());
  EXPECT_EQ(reply.leases_size(), 0);
  EXPECT_TRUE(reply.release_memory());
  coordinator->TakeMemory(milliseconds(0));
  coordinator->GiveMemory();
  ASSERT_TRUE(worker.Take(8, &reply, 0, true).ok());
  EXPECT_EQ(reply.leases_size(), 2);
  EXPECT_FALSE(reply.release_memory());
  ASSERT_TRUE(worker.Submit({FinishedSample(plan, 0, 0), FinishedSample(plan, 1, 0)}).ok());

  // It holds memory until it says that it does not; who waits for leases hears of it at once.
  try {
    coordinator->TakeMemory(milliseconds(300));
    ADD_FAILURE() << "the worker holds memory";
  } catch (const TimeoutError& e) {
    EXPECT_THAT(e.what(), HasSubstr("memory that workers hold: by hand"));
  }
  coordinator->GiveMemory();
  std::thread waiting([&] {
    ASSERT_TRUE(worker.Take(8, &reply, 60'000).ok());
    EXPECT_TRUE(reply.release_memory());
    proto::LeaseReply next;
    ASSERT_TRUE(worker.Take(8, &next, 0, true).ok());
    EXPECT_EQ(next.leases_size(), 0);
  });
  coordinator->TakeMemory(kDeadline);
  waiting.join();

  // Whoever comes in the learner's turn holds none; in the workers' turn leases are drawn again.
  Client late = Registered(*coordinator);
  coordinator->TakeMemory(milliseconds(0));
  RolloutPlan second = TinyPlan(1, 1);
  second.rollout = 1;
  coordinator->Begin(second);
  ASSERT_TRUE(late.Take(8, &reply, 0, true).ok());
  EXPECT_EQ(reply.leases_size(), 0);
  coordinator->GiveMemory();
  ASSERT_TRUE(late.Take(8, &reply, 0, true).ok());
  EXPECT_EQ(reply.leases_size(), 1);
}

// One that dies with memory in its hands does not keep the learner waiting.
TEST_F(CoordinatorTest, TheDeadHoldNoMemory) {
  Coordinator::Options options = Options();
  options.colocated = true;
  options.heartbeat = milliseconds(50);
  auto coordinator = Start(options);
  coordinator->Begin(TinyPlan(1, 1));
  coordinator->GiveMemory();
  Client worker = Registered(*coordinator);
  proto::LeaseReply reply;
  ASSERT_TRUE(worker.Take(8, &reply, 0, true).ok());
  ASSERT_EQ(reply.leases_size(), 1);
  coordinator->TakeMemory(kDeadline);
  EXPECT_EQ(coordinator->stats().workers, 0);
}

TEST_F(CoordinatorTest, ManyWhoWaitDoNotSilenceTheOthers) {
  auto coordinator = Start(Options());
  std::vector<std::unique_ptr<Client>> crowd;
  for (int i = 0; i < 80; ++i) {
    crowd.push_back(std::make_unique<Client>(coordinator->address()));
    ASSERT_TRUE(crowd.back()->Register().ok());
  }
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (auto& client : crowd) {
    threads.emplace_back([&failed, c = client.get()] {
      proto::LeaseReply reply;
      failed += !c->Take(1, &reply, 1000).ok();
    });
  }
  std::this_thread::sleep_for(milliseconds(300));
  Client one(coordinator->address());
  proto::HeartbeatReply beat;
  EXPECT_TRUE(one.Register().ok());
  EXPECT_TRUE(one.Heartbeat(1, &beat).ok());
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(failed, 0);
}

}  // namespace
}  // namespace hone::rl
