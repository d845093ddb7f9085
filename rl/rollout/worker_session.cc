#include "rl/rollout/worker_session.h"

#include <utility>

namespace hone::rl {
namespace {

using std::chrono::milliseconds;

constexpr auto kCallDeadline = std::chrono::seconds(20);
constexpr auto kBetweenTries = milliseconds(100);
constexpr size_t kSubmitBytes = 16 << 20;  // of one message, unless a sample alone is larger

// All of the coordinator's threads hold calls, as while its disk is slow: it took this one up not
// at all. Messages that are too large have the same code, and would be again.
bool NotTakenUp(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED &&
         status.error_message() == "Server Threadpool Exhausted";
}

}  // namespace

Session::Session(std::string worker_name, Security security, const std::string& address,
                 Device device)
    : name_(std::move(worker_name)),
      security_(std::move(security)),
      device_(device),
      stub_(proto::RolloutPool::NewStub(Connect(address, security_))) {}

template <class Fn>
void Session::Call(const char* what, Fn fn) {
  const auto until = std::chrono::steady_clock::now() + kCallDeadline;
  grpc::Status status;
  for (;;) {
    grpc::ClientContext context;
    Prepare(context, security_, std::chrono::duration_cast<milliseconds>(kCallDeadline));
    status = fn(&context);
    if (!NotTakenUp(status) || std::chrono::steady_clock::now() > until) break;
    std::this_thread::sleep_for(kBetweenTries);
  }
  if (status.ok()) return;
  std::string message = fmt::format("[worker] {}: {}", what, status.error_message());
  switch (status.error_code()) {
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::FAILED_PRECONDITION:
      throw RefusedError(message);
    case grpc::StatusCode::INVALID_ARGUMENT:
      // Samples of a plan that ended meanwhile; nobody needs them.
      fmt::print(stderr, "{}\n", message);
      return;
    default:
      throw CommError(message);
  }
}

proto::RegisterReply Session::Register(const std::string& model_digest) {
  proto::RegisterRequest request;
  request.set_protocol(kProtocolVersion);
  request.set_name(name_);
  request.set_build(BuildId(device_));
  request.set_model_digest(model_digest);
  proto::RegisterReply reply;
  Call("register", [&](grpc::ClientContext* c) { return stub_->Register(c, request, &reply); });
  worker_ = reply.worker();
  return reply;
}

proto::HeartbeatReply Session::Heartbeat(proto::HeartbeatRequest request) {
  request.set_worker(worker_);
  proto::HeartbeatReply reply;
  Call("heartbeat", [&](grpc::ClientContext* c) { return stub_->Heartbeat(c, request, &reply); });
  return reply;
}

proto::LeaseReply Session::TakeLeases(int64_t max_samples, int64_t max_readings, int64_t wait_ms,
                                      bool memory_released) {
  proto::LeaseRequest request;
  request.set_worker(worker_);
  request.set_wait_ms(wait_ms);
  request.set_max_samples(max_samples);
  request.set_max_readings(max_readings);
  request.set_memory_released(memory_released);
  proto::LeaseReply reply;
  Call("lease", [&](grpc::ClientContext* c) { return stub_->TakeLeases(c, request, &reply); });
  return reply;
}

void Session::Submit(proto::SubmitRequest request) {
  proto::SubmitRequest part;
  size_t bytes = 0;
  auto make_room = [&](const proto::Sample& next) {
    size_t size = next.ByteSizeLong();
    if (bytes > 0 && bytes + size > kSubmitBytes) {
      SubmitOne(part);
      part.Clear();
      bytes = 0;
    }
    bytes += size;
  };
  for (proto::Sample& m : *request.mutable_finished()) {
    make_room(m);
    part.add_finished()->Swap(&m);
  }
  for (proto::Sample& m : *request.mutable_continued()) {
    make_room(m);
    part.add_continued()->Swap(&m);
  }
  part.mutable_returned_leases()->Swap(request.mutable_returned_leases());
  part.set_error(request.error());
  SubmitOne(part);
}

void Session::SubmitOne(proto::SubmitRequest& request) {
  request.set_worker(worker_);
  proto::SubmitReply reply;
  Call("submit", [&](grpc::ClientContext* c) { return stub_->Submit(c, request, &reply); });
}

// ---- Heartbeats ---------------------------------------------------------------------------------

Heartbeats::Heartbeats(Session& session, milliseconds every)
    : session_(session), every_(every), thread_([this] { Run(); }) {}

Heartbeats::~Heartbeats() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Heartbeats::News Heartbeats::Exchange(int64_t progress, int64_t weight_host_bytes) {
  std::lock_guard lock(mutex_);
  next_.set_progress(progress);
  next_.set_weight_host_bytes(weight_host_bytes);
  Check<CommError>(error_.empty(), "{}", error_);
  return std::exchange(news_, {});
}

void Heartbeats::Run() {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, every_, [this] { return ending_; })) {
    const proto::HeartbeatRequest request = next_;
    lock.unlock();
    proto::HeartbeatReply reply;
    std::string error;
    try {
      reply = session_.Heartbeat(request);
    } catch (const Error& e) {
      error = e.what();
    }
    lock.lock();
    if (!error.empty()) {
      error_ = error;
      return;
    }
    news_.shutdown = news_.shutdown || reply.shutdown();
    for (int64_t lease : reply.cancelled_leases()) news_.cancelled_leases.push_back(lease);
  }
}

}  // namespace hone::rl
