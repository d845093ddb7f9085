#include "rl/rollout/weight_follower.h"

#include "rl/rollout/weight_publisher.h"
#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

constexpr auto kDeadline = std::chrono::seconds(10);

}  // namespace

struct WeightFollower::Impl {
  explicit Impl(Options o) : options(std::move(o)) {}

  // A run that is started again may have another address.
  proto::RolloutPool::Stub* Stub() {
    const std::string now = options.coordinator_file.empty() ? options.coordinator
                                                             : FirstLine(options.coordinator_file);
    const Security found = SecurityOf(
        options.secret_file, {"", options.tls_certificate, options.tls_key, options.tls_ca});
    if (now.empty() || found.secret.empty()) return nullptr;
    if (now != address || found != security) {
      security = found;
      address = now;
      stub = proto::RolloutPool::NewStub(Connect(address, security));
      sync = std::make_unique<WeightSync>(WeightSync::Options{security.secret, security.certificate,
                                                              security.key, security.ca, true});
    }
    return stub.get();
  }

  Options options;
  Security security;
  std::string address;
  std::unique_ptr<proto::RolloutPool::Stub> stub;
  std::unique_ptr<WeightSync> sync;
};

WeightFollower::WeightFollower(Options options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
WeightFollower::~WeightFollower() = default;

std::optional<WeightFollower::News> WeightFollower::Ask() {
  proto::RolloutPool::Stub* stub = impl_->Stub();
  if (stub == nullptr) return std::nullopt;
  grpc::ClientContext context;
  Prepare(context, impl_->security, kDeadline);
  proto::FollowReply reply;
  grpc::Status status = stub->Follow(&context, proto::FollowRequest(), &reply);
  Check<ConfigError>(status.error_code() != grpc::StatusCode::UNAUTHENTICATED, "[follow] {}: {}",
                     impl_->address, status.error_message());
  if (!status.ok()) return std::nullopt;
  News news{reply.config(), reply.model_digest(), {}};
  news.newest.version = reply.newest().version();
  news.newest.digest = reply.newest().digest();
  news.newest.endpoints.assign(reply.newest().endpoints().begin(),
                               reply.newest().endpoints().end());
  return news;
}

void WeightFollower::Fetch(const WeightVersion& version, const SlabIndex& target) {
  Check<CommError>(impl_->sync != nullptr, "[follow] nobody was asked for weights yet");
  impl_->sync->Fetch(version, target);
}

}  // namespace hone::rl
