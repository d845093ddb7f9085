// What the tests of the coordinator share: a worker that speaks the protocol by hand, and a
// coordinator over real gRPC on loopback. Only for .cc files: it draws in gRPC.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "tests/rl/rollout_testing.h"

namespace hone::rl {

inline constexpr char kSecret[] = "0123456789abcdef";
inline constexpr auto kDeadline = std::chrono::seconds(10);

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

inline void ExpectRefused(const grpc::Status& status, grpc::StatusCode code,
                          const std::string& why) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  EXPECT_THAT(status.error_message(), testing::HasSubstr(why));
}

inline bool GoOn(const Coordinator::Progress&) { return true; }

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
  static std::unique_ptr<Coordinator> Begin(const Coordinator::Options& options,
                                            const RolloutPlan& plan) {
    auto coordinator = Start(options);
    coordinator->Begin(plan);
    return coordinator;
  }
  static Client Registered(Coordinator& coordinator) {
    Client client(coordinator.address());
    EXPECT_TRUE(client.Register().ok());
    return client;
  }
  std::string JournalPath() const { return folder_ / "journal/rl/rollout-000000.bin"; }

  // Draws what is left of the plan like a good worker, and checks the end of it.
  static void FinishByHand(Coordinator& coordinator, const RolloutPlan& plan) {
    Client client = Registered(coordinator);
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

}  // namespace hone::rl
