// A worker's connection to its coordinator. For the .cc files of this folder only: it draws in
// gRPC.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"

namespace hone::rl {

// The pool said no in a way that trying again will not change.
class RefusedError : public Error {
 public:
  explicit RefusedError(const std::string& m) : Error(m) {}
};

// A connection to one incarnation of the coordinator. RefusedError when the pool refuses the worker
// itself, CommError when the coordinator is lost.
class Session {
 public:
  Session(std::string worker_name, Security security, const std::string& address, Device device);

  // First with an empty digest, which only asks for the config; then for good.
  proto::RegisterReply Register(const std::string& model_digest);
  // From another thread than the other calls.
  proto::HeartbeatReply Heartbeat(proto::HeartbeatRequest request);
  proto::LeaseReply TakeLeases(int64_t max_samples, int64_t max_readings, int64_t wait_ms,
                               bool memory_released);
  // In as many messages as it takes, the leases with the last.
  void Submit(proto::SubmitRequest request);

 private:
  void SubmitOne(proto::SubmitRequest& request);
  template <class Fn>
  void Call(const char* what, Fn fn);

  std::string name_;
  Security security_;
  Device device_;  // of the worker's model
  std::unique_ptr<proto::RolloutPool::Stub> stub_;
  int64_t worker_ = 0;
};

// Says that this worker lives, and how far it has come, while its other thread computes.
class Heartbeats {
 public:
  Heartbeats(Session& session, std::chrono::milliseconds every);
  ~Heartbeats();
  Heartbeats(const Heartbeats&) = delete;
  Heartbeats& operator=(const Heartbeats&) = delete;

  struct News {
    bool shutdown = false;
    std::vector<int64_t> cancelled_leases;
  };
  // `progress`: anything that ascends while the worker gets on; `weight_host_bytes`: WeightSync's.
  // CommError when the coordinator no longer answers.
  News Exchange(int64_t progress, int64_t weight_host_bytes);

 private:
  void Run();

  Session& session_;
  std::chrono::milliseconds every_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  proto::HeartbeatRequest next_;
  News news_;
  std::string error_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace hone::rl
