// The coordinator over real gRPC on loopback: what it takes, what it refuses and says why, and that
// a refusal disturbs nothing else.
#include "rl/rollout/coordinator.h"

#include <arpa/inet.h>
#include <grpcpp/generic/generic_stub.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "rl/rollout/journal.h"
#include "rl/rollout/own_certificate.h"
#include "runtime/error.h"
#include "tests/rl/coordinator_testing.h"

namespace hone::rl {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

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
  RolloutPlan plan = TinyPlan(4, 3);
  auto coordinator = Begin(options, plan);

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
  Client worker = Registered(*coordinator);
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
  RolloutPlan plan = TinyPlan(2, 2);
  auto coordinator = Begin(Options(), plan);
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
  RolloutPlan plan = TinyPlan(2, 2);
  auto coordinator = Begin(Options(), plan);
  Client client = Registered(*coordinator);
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
  Client again = Registered(*coordinator);
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
  Client client = Registered(*coordinator);
  full = true;
  EXPECT_FALSE(client.Submit({FinishedSample(plan, 0, 0)}).ok());
  EXPECT_THROW(coordinator->Finish("rl", 0, std::chrono::seconds(5), GoOn), IoError);
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

// Of plans that are begun together, workers draw the later ones after the earlier.
TEST_F(CoordinatorTest, APlanIsNotStuckForItsAge) {
  RolloutPlan earlier = TinyPlan(1, 3), later = TinyPlan(1, 1);
  later.rollout = 1;
  auto coordinator = Begin(Options(), earlier);
  coordinator->Begin(later);
  Client client = Registered(*coordinator);
  std::this_thread::sleep_for(milliseconds(1100));
  int64_t drawn = 0;
  auto draw = [&](const Coordinator::Progress&) {
    std::this_thread::sleep_for(milliseconds(400));
    const bool busy = drawn < earlier.group_size;
    EXPECT_TRUE(
        client.Submit({busy ? FinishedSample(earlier, 0, drawn++) : FinishedSample(later, 0, 0)})
            .ok());
    return true;
  };
  EXPECT_EQ(coordinator->Finish("rl", 1, std::chrono::seconds(1), draw).size(), 1u);
  EXPECT_EQ(drawn, 3);
}

// One rollout behind, a resumed run publishes today's weights, but its rollout was drawn by others.
TEST_F(CoordinatorTest, WeightsThatAreNoMoreDrawNothing) {
  RolloutPlan plan = TinyPlan(1, 2);
  {
    auto coordinator = Start(Options());
    coordinator->Begin(plan);
    Client client = Registered(*coordinator);
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
    Client client = Registered(*coordinator);
    ASSERT_TRUE(client.Submit({FinishedSample(plan, 0, 1)}).ok());
  }
  auto coordinator = std::make_unique<Coordinator>(runtime::LocalFileSystem(), Options());
  coordinator->Publish({1, "d2", {}});
  RolloutPlan changed = plan;  // is refused, and costs nothing
  changed.max_new_tokens += 1;
  EXPECT_THAT(runtime::MessageOf([&] { coordinator->Begin(changed); }),
              HasSubstr("undo the change of 'rl'"));
  coordinator->Begin(plan);
  EXPECT_EQ(coordinator->Finish("rl", 0, milliseconds(50), GoOn).size(), 2u);
}

TEST_F(CoordinatorTest, OfUnpinnedWeightsTwoVersionsAreKnown) {
  RolloutPlan plan = TinyPlan(1, 2);
  auto coordinator = Begin(Options(), plan);
  Client client = Registered(*coordinator);
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

TEST_F(CoordinatorTest, ListensWithASecretOnly) {
  Coordinator::Options options = Options();
  options.secret = "";
  EXPECT_THROW(Start(options), ConfigError);
}

// Who has the run's key is of the run, wherever it is; another run's is not, nor is no key.
TEST_F(CoordinatorTest, ACertificateOfTheRunsOwn) {
  auto file = [&](const std::string& name) {
    runtime::LocalFileSystem().WriteAtomically(folder_ / name,
                                               std::string(kSecret) + "\n" + MakeOwnCertificate());
    return folder_ / name;
  };
  Coordinator::Options options = Options();
  options.listen = "0.0.0.0:0";
  const std::string text = runtime::LocalFileSystem().ReadAll(file("secret"));
  options.tls_certificate = options.tls_key = options.tls_ca = text.substr(text.find('\n') + 1);
  auto coordinator = Start(options);
  const std::string port = coordinator->address().substr(coordinator->address().rfind(':'));
  for (const std::string host : {"127.0.0.1", "localhost"}) {
    Client good(host + port, SecurityOf(folder_ / "secret", {}));
    EXPECT_TRUE(good.Register().ok()) << host;
  }
  Client foreign("127.0.0.1" + port, SecurityOf(file("other"), {}));
  EXPECT_EQ(foreign.Register().error_code(), grpc::StatusCode::UNAVAILABLE);
  Client plain("127.0.0.1" + port);
  EXPECT_EQ(plain.Register().error_code(), grpc::StatusCode::UNAVAILABLE);
  Client secretless("127.0.0.1" + port, {"", options.tls_ca, options.tls_ca, options.tls_ca});
  EXPECT_EQ(secretless.Register().error_code(), grpc::StatusCode::UNAUTHENTICATED);
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
