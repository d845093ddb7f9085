// The coordinator over real gRPC on loopback: what it takes, what it refuses and says why, and that
// a refusal disturbs nothing else.
#include "rl/rollout/coordinator.h"

#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "rl/rollout/journal.h"
#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr char kSecret[] = "0123456789abcdef";
constexpr auto kDeadline = std::chrono::seconds(10);

// A worker that speaks the protocol by hand.
class Client {
 public:
  Client(const std::string& address, Security security)
      : security_(std::move(security)),
        channel_(Connect(address, security_)),
        stub_(proto::RolloutPool::NewStub(channel_)) {}
  explicit Client(const std::string& address) : Client(address, {kSecret, "", "", ""}) {}

  grpc::Status Register(const std::string& digest = "m", int protocol = kProtocolVersion,
                        const std::string& build = BuildId()) {
    proto::RegisterRequest request;
    request.set_protocol(protocol);
    request.set_name("by hand");
    request.set_build(build);
    request.set_model_digest(digest);
    grpc::ClientContext context;
    Prepare(context, security_, kDeadline);
    grpc::Status status = stub_->Register(&context, request, &hello);
    worker = hello.worker();
    return status;
  }
  grpc::Status Take(int64_t samples, proto::LeaseReply* reply, int64_t wait_ms = 0,
                    bool memory_released = false) {
    proto::LeaseRequest request;
    request.set_memory_released(memory_released);
    request.set_worker(worker);
    request.set_max_samples(samples);
    request.set_wait_ms(wait_ms);
    grpc::ClientContext context;
    Prepare(context, security_, kDeadline);
    return stub_->TakeLeases(&context, request, reply);
  }
  grpc::Status Submit(proto::SubmitRequest request, proto::SubmitReply* reply) {
    request.set_worker(worker);
    grpc::ClientContext context;
    Prepare(context, security_, kDeadline);
    return stub_->Submit(&context, request, reply);
  }
  grpc::Status Submit(const std::vector<Sample>& samples) {
    proto::SubmitRequest request;
    for (const Sample& s : samples) *request.add_finished() = ToProto(s);
    return Submit(std::move(request), &submitted);
  }
  grpc::Status Heartbeat(int64_t progress, proto::HeartbeatReply* reply,
                         int64_t weight_host_bytes = 0) {
    proto::HeartbeatRequest request;
    request.set_worker(worker);
    request.set_weight_host_bytes(weight_host_bytes);
    request.set_progress(progress);
    grpc::ClientContext context;
    Prepare(context, security_, kDeadline);
    return stub_->Heartbeat(&context, request, reply);
  }
  std::shared_ptr<grpc::Channel> channel() const { return channel_; }

  int64_t worker = 0;
  proto::RegisterReply hello;
  proto::SubmitReply submitted;

 private:
  Security security_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<proto::RolloutPool::Stub> stub_;
};

void ExpectRefused(const grpc::Status& status, grpc::StatusCode code, const std::string& why) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr(why));
}

bool GoOn(const Coordinator::Progress&) { return true; }

class CoordinatorTest : public testing::Test {
 protected:
  Coordinator::Options Options() const {
    Coordinator::Options o;
    o.secret = kSecret;
    o.worker_config = "the config";
    o.model_digest = "m";
    o.journal_dir = folder_ / "journal";
    o.vocab_size = kVocabulary;
    return o;
  }
  static std::unique_ptr<Coordinator> Start(const Coordinator::Options& options,
                                            FileSystem& fs = runtime::LocalFileSystem()) {
    auto coordinator = std::make_unique<Coordinator>(fs, options);
    coordinator->Publish({1, "d1", {"127.0.0.1:1"}});
    return coordinator;
  }
  std::string JournalPath() const { return folder_ / "journal/rl/rollout-000000.bin"; }

  // Draws what is left of the plan like a good worker, and checks the end of it.
  static void FinishByHand(Coordinator& coordinator, const RolloutPlan& plan) {
    Client client(coordinator.address());
    ASSERT_TRUE(client.Register().ok());
    auto until = std::chrono::steady_clock::now() + kDeadline;
    bool drawn = false;
    std::thread worker([&] {
      while (!drawn && std::chrono::steady_clock::now() < until) {
        proto::LeaseReply reply;
        EXPECT_TRUE(client.Take(1000, &reply, 20).ok());
        for (const proto::Lease& lease : reply.leases()) {
          std::vector<Sample> samples;
          for (int64_t s : lease.samples()) {
            samples.push_back(FinishedSample(plan, lease.prompt(), s));
          }
          EXPECT_TRUE(client.Submit(samples).ok());
        }
        drawn = reply.shutdown();
      }
    });
    std::vector<Sample> samples =
        coordinator.Finish(plan.stage, plan.rollout, std::chrono::seconds(5), GoOn);
    coordinator.Shutdown();
    worker.join();
    ASSERT_EQ(samples.size(), plan.prompts.size() * static_cast<size_t>(plan.group_size));
    for (size_t i = 0; i < samples.size(); ++i) {
      int64_t prompt = static_cast<int64_t>(i) / plan.group_size;
      EXPECT_TRUE(SameSample(samples[i], FinishedSample(plan, prompt, samples[i].key.sample)));
      EXPECT_EQ(samples[i].key.sample, static_cast<int64_t>(i) % plan.group_size);
    }
  }
  runtime::TemporaryFolder folder_;
};

TEST_F(CoordinatorTest, AWorkerIsToldEverythingItNeeds) {
  auto coordinator = Start(Options());
  RolloutPlan plan = TinyPlan(3, 2);
  plan.stop_strings = {"</answer>"};
  plan.stop_ids = {258};
  plan.sampling = {.temperature = 0.75, .top_p = 0.5, .top_k = 3};
  plan.record_routing = true;
  coordinator->Begin(plan);
  Client client(coordinator->address());
  ASSERT_TRUE(client.Register("").ok());
  EXPECT_EQ(client.hello.config(), "the config");
  EXPECT_EQ(client.hello.model_digest(), "m");
  EXPECT_EQ(client.worker, 0);  // it has yet to show that it built the right model
  ASSERT_TRUE(client.Register().ok());
  EXPECT_GT(client.worker, 0);
  proto::LeaseReply reply;
  ASSERT_TRUE(client.Take(3, &reply).ok());
  ASSERT_EQ(reply.leases_size(), 2);
  const proto::Lease& lease = reply.leases(1);
  EXPECT_EQ(lease.prompt(), 1);
  EXPECT_EQ(lease.samples_size(), 1);
  const RolloutPrompt& prompt = plan.prompts[1];
  EXPECT_EQ(std::vector<int32_t>(lease.prompt_tokens().begin(), lease.prompt_tokens().end()),
            prompt.tokens);
  EXPECT_EQ(lease.gold(), prompt.problem.answer);
  EXPECT_EQ(lease.verifier(), "integer");
  EXPECT_EQ(lease.seed(), plan.seed);
  EXPECT_EQ(lease.temperature(), 0.75);
  EXPECT_EQ(lease.top_p(), 0.5);
  EXPECT_EQ(lease.top_k(), 3);
  EXPECT_EQ(lease.max_new_tokens(), 12);
  EXPECT_EQ(lease.stop_ids(0), 258);
  EXPECT_EQ(lease.stop_strings(0), "</answer>");
  EXPECT_TRUE(lease.record_routing());
  EXPECT_EQ(lease.weights().version(), 1);
  EXPECT_EQ(lease.weights().digest(), "d1");
  EXPECT_EQ(lease.weights().endpoints(0), "127.0.0.1:1");
}

TEST_F(CoordinatorTest, RefusesWithAReasonAndGoesOn) {
  Coordinator::Options options = Options();
  options.max_message_bytes = 64 << 10;
  auto coordinator = Start(options);
  RolloutPlan plan = TinyPlan(4, 3);
  coordinator->Begin(plan);

  for (const char* secret : {"", "wrong", "0123456789abcdeF", "0123456789abcdef0"}) {
    Client stranger(coordinator->address(), {secret, "", "", ""});
    proto::LeaseReply leases;
    proto::HeartbeatReply beat;
    stranger.worker = 1;
    for (const grpc::Status& status : {stranger.Register(), stranger.Take(1, &leases),
                                       stranger.Heartbeat(1, &beat), stranger.Submit({})}) {
      ExpectRefused(status, grpc::StatusCode::UNAUTHENTICATED, "wrong secret");
    }
    EXPECT_EQ(stranger.hello.config(), "");
  }
  Client other(coordinator->address());
  auto precondition = grpc::StatusCode::FAILED_PRECONDITION;
  ExpectRefused(other.Register("x"), precondition, "model x where the run trains m");
  ExpectRefused(other.Register("m", 99), precondition,
                fmt::format("protocol 99 where {} is spoken", kProtocolVersion));
  ExpectRefused(other.Register("m", kProtocolVersion, "pdp11"), precondition,
                "build 'pdp11' where the learner");
  const std::string gpu = "gcc" __VERSION__ " cuda: some GPU";
  ExpectRefused(other.Register("m", kProtocolVersion, gpu), precondition,
                fmt::format("build '{}' where the learner is '{}'", gpu, BuildId()));
  {
    Coordinator::Options lenient = Options();
    lenient.any_build = true;
    lenient.journal_dir.clear();
    auto second = Start(lenient);
    Client foreign(second->address());
    EXPECT_TRUE(foreign.Register("m", kProtocolVersion, gpu).ok());
    ExpectRefused(foreign.Register("x", kProtocolVersion, gpu), precondition, "model x");
  }
  other.worker = 77;
  ExpectRefused(other.Submit({}), grpc::StatusCode::NOT_FOUND, "worker 77 is not registered");
  EXPECT_EQ(coordinator->stats().workers, 0);

  // One of each message's samples is bad, the others count.
  Client worker(coordinator->address());
  ASSERT_TRUE(worker.Register().ok());
  proto::SubmitRequest request;
  *request.add_finished() = ToProto(FinishedSample(plan, 0, 0));
  proto::Sample* torn = request.add_finished();
  *torn = ToProto(FinishedSample(plan, 0, 1));
  torn->mutable_logp()->RemoveLast();
  *request.add_finished() = ToProto(FinishedSample(plan, 0, 2));
  ExpectRefused(worker.Submit(request, &worker.submitted), grpc::StatusCode::INVALID_ARGUMENT,
                "fields of other lengths");
  Sample old = FinishedSample(plan, 1, 0);
  old.tokens.back().weight_version = 3;
  ExpectRefused(worker.Submit({old, FinishedSample(plan, 1, 1)}),
                grpc::StatusCode::INVALID_ARGUMENT, "drawn with weights 3, not 1");
  Sample large = FinishedSample(plan, 2, 0);
  large.text.assign(100 << 10, 'x');
  ExpectRefused(worker.Submit({large}), grpc::StatusCode::RESOURCE_EXHAUSTED, "larger than max");
  EXPECT_EQ(ReadJournal(runtime::LocalFileSystem(), JournalPath()).size(), 3u);
  EXPECT_GE(coordinator->stats().refused, 4 * 4 + 3 + 2);
  FinishByHand(*coordinator, plan);
}

// Bytes that are no message, and bytes that are not even HTTP/2.
TEST_F(CoordinatorTest, MalformedBytesDisturbNothing) {
  auto coordinator = Start(Options());
  RolloutPlan plan = TinyPlan(2, 2);
  coordinator->Begin(plan);
  Client client(coordinator->address());
  for (const char* method : {"Register", "Submit", "TakeLeases", "Heartbeat", "NoSuchMethod"}) {
    grpc::GenericStub stub(client.channel());
    grpc::ClientContext context;
    Prepare(context, {kSecret, "", "", ""}, kDeadline);
    grpc::Slice slice(std::string("\xff\xff\xff\x07garbage"));
    grpc::ByteBuffer sent(&slice, 1), received;
    grpc::CompletionQueue queue;
    auto call = stub.PrepareUnaryCall(
        &context, fmt::format("/hone.rl.proto.RolloutPool/{}", method), sent, &queue);
    call->StartCall();
    grpc::Status status;
    call->Finish(&received, &status, nullptr);
    void* tag;
    bool ok;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_FALSE(status.ok()) << method;
  }
  int port = std::stoi(coordinator->address().substr(coordinator->address().rfind(':') + 1));
  for (int i = 0; i < 3; ++i) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    std::string noise(1000, static_cast<char>('A' + i));
    EXPECT_EQ(send(fd, noise.data(), noise.size(), MSG_NOSIGNAL), 1000);
    close(fd);
  }
  FinishByHand(*coordinator, plan);
}

TEST_F(CoordinatorTest, WhatIsAcknowledgedIsInTheJournal) {
  auto coordinator = Start(Options());
  RolloutPlan plan = TinyPlan(2, 2);
  coordinator->Begin(plan);
  Client client(coordinator->address());
  ASSERT_TRUE(client.Register().ok());
  ASSERT_TRUE(client.Submit({FinishedSample(plan, 1, 0)}).ok());
  EXPECT_EQ(client.submitted.accepted(), 1);
  auto journalled = ReadJournal(runtime::LocalFileSystem(), JournalPath());
  ASSERT_EQ(journalled.size(), 1u);
  EXPECT_TRUE(SameSample(journalled[0], FinishedSample(plan, 1, 0)));
  ASSERT_TRUE(client.Submit({FinishedSample(plan, 1, 0)}).ok());
  EXPECT_EQ(client.submitted.repeats(), 1);
  EXPECT_EQ(ReadJournal(runtime::LocalFileSystem(), JournalPath()).size(), 1u);
  EXPECT_EQ(coordinator->stats().repeats, 1);
  EXPECT_EQ(coordinator->stats().outcomes.at("correct"), 1);
  // Another coordinator, as after a crash, asks for the other three only.
  coordinator.reset();
  coordinator = Start(Options());
  coordinator->Begin(plan);
  ASSERT_TRUE(Client(coordinator->address()).Register().ok());
  Client again(coordinator->address());
  ASSERT_TRUE(again.Register().ok());
  proto::LeaseReply reply;
  ASSERT_TRUE(again.Take(99, &reply).ok());
  int64_t asked = 0;
  for (const proto::Lease& lease : reply.leases()) asked += lease.samples_size();
  EXPECT_EQ(asked, 3);
}

TEST_F(CoordinatorTest, AJournalThatCannotBeWrittenEndsTheWait) {
  std::atomic<bool> full{false};
  runtime::FaultyFileSystem faulty(
      runtime::LocalFileSystem(), [&](const std::string& op, const std::string&, int64_t) {
        return std::string(full && op == "write" ? "no space left" : "");
      });
  auto coordinator = Start(Options(), faulty);
  RolloutPlan plan = TinyPlan(1, 2);
  coordinator->Begin(plan);
  Client client(coordinator->address());
  ASSERT_TRUE(client.Register().ok());
  full = true;
  EXPECT_FALSE(client.Submit({FinishedSample(plan, 0, 0)}).ok());
  EXPECT_THROW(coordinator->Finish("rl", 0, std::chrono::seconds(5), GoOn), IoError);
}

TEST_F(CoordinatorTest, LeasesOfTheSilentAreReissuedThoseOfTheBusyAreNot) {
  Coordinator::Options options = Options();
  options.lease = milliseconds(400);
  options.heartbeat = milliseconds(100'000);
  auto coordinator = Start(options);
  RolloutPlan plan = TinyPlan(2, 2);
  coordinator->Begin(plan);
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
  for (int64_t i = 1; i <= 16; ++i) {
    std::this_thread::sleep_for(milliseconds(50));
    ASSERT_TRUE(busy.Heartbeat(i, &beat).ok());
    EXPECT_EQ(beat.cancelled_leases_size(), 0) << "a lease of the busy one was taken away";
    ASSERT_TRUE(silent.Heartbeat(5, &beat).ok());
    cancelled.insert(cancelled.end(), beat.cancelled_leases().begin(),
                     beat.cancelled_leases().end());
  }
  EXPECT_EQ(cancelled, std::vector<int64_t>{one.leases(0).lease()});
  proto::LeaseReply again;
  ASSERT_TRUE(third.Take(9, &again, 2000).ok());
  ASSERT_EQ(again.leases_size(), 1);
  EXPECT_EQ(again.leases(0).prompt(), one.leases(0).prompt());
  EXPECT_GE(coordinator->stats().reissued, 1);
}

// Workers tell sums; what they told stays when they are gone.
TEST_F(CoordinatorTest, WeightsThatPassedHostsAreCountedOnce) {
  Coordinator::Options options = Options();
  options.heartbeat = milliseconds(50);
  auto coordinator = Start(options);
  proto::HeartbeatReply beat;
  for (int64_t expected : {9, 18}) {
    Client worker(coordinator->address());
    ASSERT_TRUE(worker.Register().ok());
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
  auto coordinator = Start(options);
  RolloutPlan plan = TinyPlan(2, 2);
  coordinator->Begin(plan);
  Client dead(coordinator->address());
  ASSERT_TRUE(dead.Register().ok());
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
  Client other(coordinator->address());
  ASSERT_TRUE(other.Register().ok());
  proto::LeaseReply again;
  ASSERT_TRUE(other.Take(4, &again).ok());
  ASSERT_EQ(again.leases_size(), 2);
  ASSERT_EQ(again.leases(0).partial_size(), 1);
  EXPECT_TRUE(SameSample(FromProto(again.leases(0).partial(0)), half));
}

// Learner and workers take turns with the memory of a device.
TEST_F(CoordinatorTest, MemoryIsHandedToAndFro) {
  Coordinator::Options options = Options();
  options.colocated = true;
  auto coordinator = Start(options);
  RolloutPlan plan = TinyPlan(2, 1);
  coordinator->Begin(plan);
  Client worker(coordinator->address());
  ASSERT_TRUE(worker.Register().ok());
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
  Client late(coordinator->address());
  ASSERT_TRUE(late.Register().ok());
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
  Client worker(coordinator->address());
  ASSERT_TRUE(worker.Register().ok());
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

TEST_F(CoordinatorTest, AWaitEndsWhenStuckOrStopped) {
  auto coordinator = Start(Options());
  coordinator->Begin(TinyPlan(1, 1));
  EXPECT_THROW(coordinator->Finish("rl", 0, milliseconds(50), GoOn), TimeoutError);
  EXPECT_THROW(coordinator->Finish("rl", 0, std::chrono::seconds(9),
                                   [](const Coordinator::Progress&) { return false; }),
               StoppedEarly);
  EXPECT_THROW(coordinator->Finish("rl", 7, std::chrono::seconds(9), GoOn), Error);
}

// One rollout behind, a resumed run publishes today's weights, but its rollout was drawn by others.
TEST_F(CoordinatorTest, WeightsThatAreNoMoreDrawNothing) {
  RolloutPlan plan = TinyPlan(1, 2);
  {
    auto coordinator = Start(Options());
    coordinator->Begin(plan);
    Client client(coordinator->address());
    ASSERT_TRUE(client.Register().ok());
    ASSERT_TRUE(client.Submit({FinishedSample(plan, 0, 0)}).ok());
  }
  {
    auto coordinator = std::make_unique<Coordinator>(runtime::LocalFileSystem(), Options());
    coordinator->Publish({1, "d2", {}});
    EXPECT_THROW(coordinator->Begin(plan), DataError);
  }
  {
    auto coordinator = Start(Options());
    coordinator->Begin(plan);
    Client client(coordinator->address());
    ASSERT_TRUE(client.Register().ok());
    ASSERT_TRUE(client.Submit({FinishedSample(plan, 0, 1)}).ok());
  }
  auto coordinator = std::make_unique<Coordinator>(runtime::LocalFileSystem(), Options());
  coordinator->Publish({1, "d2", {}});
  coordinator->Begin(plan);
  EXPECT_EQ(coordinator->Finish("rl", 0, milliseconds(50), GoOn).size(), 2u);
}

TEST_F(CoordinatorTest, OfUnpinnedWeightsTwoVersionsAreKnown) {
  auto coordinator = Start(Options());
  RolloutPlan plan = TinyPlan(1, 2);
  coordinator->Begin(plan);
  Client client(coordinator->address());
  ASSERT_TRUE(client.Register().ok());
  coordinator->Publish({2, "d2", {}});
  proto::LeaseReply known, gone;
  ASSERT_TRUE(client.Take(1, &known).ok());
  EXPECT_EQ(known.leases_size(), 1);
  coordinator->Publish({3, "d3", {}});
  ASSERT_TRUE(client.Take(1, &gone).ok());
  EXPECT_EQ(gone.leases_size(), 0);
  const std::string why =
      runtime::MessageOf([&] { coordinator->Finish("rl", 0, std::chrono::seconds(5), GoOn); });
  EXPECT_THAT(why, HasSubstr("weights 1, which 'rl' rollout 0 is for, are gone"));
  plan.rollout = 1;
  EXPECT_THROW(coordinator->Begin(plan), Error);
}

TEST_F(CoordinatorTest, ListensBeyondLoopbackOnlyWithTls) {
  for (const char* listen : {"0.0.0.0:0", "[::]:0", "192.168.0.1:0", "myhost:0"}) {
    Coordinator::Options options = Options();
    options.listen = listen;
    try {
      Coordinator coordinator(runtime::LocalFileSystem(), options);
      ADD_FAILURE() << "it listens on " << listen;
    } catch (const ConfigError& e) {
      EXPECT_THAT(e.what(), HasSubstr(listen));
      EXPECT_THAT(e.what(), HasSubstr("without TLS"));
    }
  }
}

TEST_F(CoordinatorTest, MutualTls) {
  auto file = [&](const std::string& name) { return folder_ / name; };
  auto openssl = [](const std::string& words) {
    return std::system(("openssl " + words + " >/dev/null 2>&1").c_str()) == 0;
  };
  if (!openssl("version")) GTEST_SKIP() << "there is no openssl to make certificates with";
  runtime::LocalFileSystem().WriteAtomically(file("san"),
                                             "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
  for (const std::string ca : {"ca", "other-ca"}) {
    ASSERT_TRUE(
        openssl(fmt::format("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={0} "
                            "-keyout {1}.key -out {1}.pem",
                            ca, file(ca))));
    ASSERT_TRUE(openssl(fmt::format(
        "req -newkey rsa:2048 -nodes -subj /CN=node -keyout {0}-node.key -out {0}-node.csr",
        file(ca))));
    ASSERT_TRUE(
        openssl(fmt::format("x509 -req -days 2 -in {0}-node.csr -CA {0}.pem -CAkey {0}.key "
                            "-CAcreateserial -extfile {1} -out {0}-node.pem",
                            file(ca), file("san"))));
  }
  Coordinator::Options options = Options();
  options.tls_certificate = file("ca-node.pem");
  options.tls_key = file("ca-node.key");
  options.tls_ca = file("ca.pem");
  auto coordinator = Start(options);
  Client good(coordinator->address(),
              {kSecret, file("ca-node.pem"), file("ca-node.key"), file("ca.pem")});
  EXPECT_TRUE(good.Register().ok());
  Client plain(coordinator->address());
  EXPECT_EQ(plain.Register().error_code(), grpc::StatusCode::UNAVAILABLE);
  Client foreign(coordinator->address(),
                 {kSecret, file("other-ca-node.pem"), file("other-ca-node.key"), file("ca.pem")});
  EXPECT_EQ(foreign.Register().error_code(), grpc::StatusCode::UNAVAILABLE);
  Client wary(coordinator->address(),
              {kSecret, file("ca-node.pem"), file("ca-node.key"), file("other-ca.pem")});
  EXPECT_EQ(wary.Register().error_code(), grpc::StatusCode::UNAVAILABLE);
  Client secretless(coordinator->address(),
                    {"", file("ca-node.pem"), file("ca-node.key"), file("ca.pem")});
  EXPECT_EQ(secretless.Register().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(good.Register().ok());
  EXPECT_THROW(Client(coordinator->address(), {kSecret, file("none"), file("none"), file("none")}),
               ConfigError);
}

}  // namespace
}  // namespace hone::rl
