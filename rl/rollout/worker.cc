#include "rl/rollout/worker.h"

#include <unistd.h>

#include <condition_variable>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "data/tokenizer.h"
#include "rl/reward/verifier_pool.h"
#include "rl/rollout/inference_engine.h"
#include "rl/rollout/weight_publisher.h"
#include "rl/rollout/wire.h"
#include "rl/rollout/worker_model.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto kCallDeadline = std::chrono::seconds(20);
constexpr int64_t kLeaseWaitMs = 1000;
constexpr auto kLeaseEvery = milliseconds(50);  // while there is work already
constexpr auto kAfterFailure = milliseconds(200);
constexpr auto kSubmitEvery = milliseconds(100);
constexpr size_t kSubmitBytes = 16 << 20;  // of one message, unless a sample alone is larger
constexpr auto kVerifierPatience =
    std::chrono::seconds(30);  // when the last samples are being scored

std::string ReadLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The pool said no in a way that trying again will not change.
class RefusedError : public Error {
 public:
  explicit RefusedError(const std::string& m) : Error(m) {}
};

// A connection to one incarnation of the coordinator.
class Session {
 public:
  Session(const WorkerOptions& options, Security security, const std::string& address)
      : options_(options),
        security_(std::move(security)),
        stub_(proto::RolloutPool::NewStub(Connect(address, security_, 64 << 20))) {}

  proto::RegisterReply Register(const std::string& model_digest) {
    proto::RegisterRequest request;
    request.set_protocol(kProtocolVersion);
    request.set_name(options_.name);
    request.set_build(BuildId());
    request.set_model_digest(model_digest);
    proto::RegisterReply reply;
    Call("register", [&](grpc::ClientContext* c) { return stub_->Register(c, request, &reply); });
    worker_ = reply.worker();
    return reply;
  }
  // From another thread than the other calls.
  proto::HeartbeatReply Heartbeat(int64_t progress) {
    proto::HeartbeatRequest request;
    request.set_worker(worker_);
    request.set_progress(progress);
    proto::HeartbeatReply reply;
    Call("heartbeat", [&](grpc::ClientContext* c) { return stub_->Heartbeat(c, request, &reply); });
    return reply;
  }
  proto::LeaseReply TakeLeases(int64_t max_samples, int64_t wait_ms) {
    proto::LeaseRequest request;
    request.set_worker(worker_);
    request.set_wait_ms(wait_ms);
    request.set_max_samples(max_samples);
    proto::LeaseReply reply;
    Call("lease", [&](grpc::ClientContext* c) { return stub_->TakeLeases(c, request, &reply); });
    return reply;
  }
  // In as many messages as it takes, the leases with the last.
  void Submit(proto::SubmitRequest request) {
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

 private:
  void SubmitOne(proto::SubmitRequest& request) {
    request.set_worker(worker_);
    proto::SubmitReply reply;
    Call("submit", [&](grpc::ClientContext* c) { return stub_->Submit(c, request, &reply); });
  }

  template <class Fn>
  void Call(const char* what, Fn fn) {
    grpc::ClientContext context;
    Prepare(context, security_, std::chrono::duration_cast<milliseconds>(kCallDeadline));
    grpc::Status status = fn(&context);
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

  const WorkerOptions& options_;
  Security security_;
  std::unique_ptr<proto::RolloutPool::Stub> stub_;
  int64_t worker_ = 0;
};

// Says that this worker lives, and how far it has come, while its other thread computes.
class Heartbeats {
 public:
  Heartbeats(Session& session, milliseconds every)
      : session_(session), every_(every), thread_([this] { Run(); }) {}
  ~Heartbeats() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Heartbeats(const Heartbeats&) = delete;
  Heartbeats& operator=(const Heartbeats&) = delete;

  struct News {
    bool shutdown = false;
    std::vector<int64_t> cancelled_leases;
  };
  // CommError when the coordinator no longer answers.
  News Exchange(int64_t progress) {
    std::lock_guard lock(mutex_);
    progress_ = progress;
    Check<CommError>(error_.empty(), "{}", error_);
    return std::exchange(news_, {});
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, every_, [this] { return ending_; })) {
      int64_t progress = progress_;
      lock.unlock();
      proto::HeartbeatReply reply;
      std::string error;
      try {
        reply = session_.Heartbeat(progress);
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

  Session& session_;
  milliseconds every_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ending_ = false;
  int64_t progress_ = 0;
  News news_;
  std::string error_;
  std::thread thread_;  // last: it uses the others
};

// A sample being drawn or scored.
struct Task {
  int64_t lease = 0;
  Sample sample;  // prompt tokens, and tokens of an earlier lease
  RewardRequest reward;
  int64_t version = 0;
  bool drawn = false;
};

class Worker {
 public:
  Worker(const WorkerOptions& options, const Security& security, VerifierPool& verifiers,
         const std::atomic<bool>& stop)
      : options_(options),
        security_(security),
        verifiers_(verifiers),
        stop_(stop),
        weights_({security.secret, security.certificate, security.key, security.ca, true}) {}

  bool was_connected() const { return connected_; }

  // Works for one incarnation of the coordinator until told to end; true then. CommError when it is
  // lost.
  bool Serve(const std::string& address) {
    connected_ = false;
    Session session(options_, security_, address);
    proto::RegisterReply hello = session.Register("");
    connected_ = true;
    if (!model_ || hello.config() != config_) {
      config_ = hello.config();
      model_.reset();
      model_ = std::make_unique<WorkerModel>(config_, options_.threads);
      version_ = 0;
    }
    session.Register(model_->digest());
    Forget();
    Heartbeats heartbeats(session, milliseconds(hello.heartbeat_ms()));
    return Loop(session, heartbeats);
  }

 private:
  // Nothing of an earlier session is owed to this one.
  void Forget() {
    model_->engine().Drain();
    tasks_.clear();
    finished_.Clear();
    last_submit_ = next_lease_ = Clock::now();
  }

  bool Loop(Session& session, Heartbeats& heartbeats) {
    for (;;) {
      if (stop_) {
        GiveBack(session, "the worker was asked to stop");
        return true;
      }
      bool idle = tasks_.empty() && finished_.finished_size() == 0;
      int64_t room = model_->max_batch() * 2 - static_cast<int64_t>(tasks_.size());
      if (room > 0 && Clock::now() >= next_lease_) {
        next_lease_ = Clock::now() + (idle ? milliseconds(0) : kLeaseEvery);
        proto::LeaseReply reply = session.TakeLeases(room, idle ? kLeaseWaitMs : 0);
        if (reply.shutdown() && idle) return true;
        for (const proto::Lease& lease : reply.leases()) Accept(session, lease);
      }
      // A busy coordinator answers at once that there is nothing.
      if (idle && tasks_.empty()) std::this_thread::sleep_for(milliseconds(10));
      for (GenerateResult& result : model_->engine().Step()) Drawn(std::move(result));
      CollectScores(model_->engine().pending() == 0 && !tasks_.empty());
      SubmitIfDue(session);
      Heartbeats::News news = heartbeats.Exchange(Progress());
      for (int64_t lease : news.cancelled_leases) Drop(lease);
      if (news.shutdown) return true;
    }
  }

  // Anything that ascends while this worker gets on.
  int64_t Progress() const {
    EngineStats stats = model_->engine().stats();
    return stats.prefill_tokens + stats.decoded_tokens + scored_;
  }

  // New weights are fetched once nothing of the old ones is under way; what is, goes back
  // half-drawn.
  void UseWeights(Session& session, const proto::WeightVersion& wanted) {
    if (wanted.version() == version_ && wanted.digest() == weight_digest_) return;
    if (model_->engine().pending() > 0) GiveBack(session, "newer weights are wanted");
    WeightVersion version{
        wanted.version(), wanted.digest(), {wanted.endpoints().begin(), wanted.endpoints().end()}};
    version_ = 0;  // until the fetch is checked, the weights are neither
    weights_.Fetch(version, model_->State());
    model_->engine().Drain();
    version_ = version.version;
    weight_digest_ = version.digest;
  }

  // A lease that cannot be worked on goes back with the reason, and so somebody else may try.
  void Accept(Session& session, const proto::Lease& lease) {
    try {
      UseWeights(session, lease.weights());
      std::map<int64_t, const proto::Sample*> partial;
      for (const proto::Sample& m : lease.partial()) partial[m.key().sample()] = &m;
      for (int64_t s : lease.samples()) {
        auto begun = partial.find(s);
        AddTask(lease, s, begun == partial.end() ? nullptr : begun->second);
      }
    } catch (const Error& e) {
      Drop(lease.lease());
      proto::SubmitRequest request;
      request.add_returned_leases(lease.lease());
      request.set_error(e.what());
      session.Submit(std::move(request));
      next_lease_ = Clock::now() + kAfterFailure;
    }
  }

  void AddTask(const proto::Lease& lease, int64_t sample, const proto::Sample* begun) {
    uint64_t id = next_task_++;
    Task& task = tasks_[id];
    task.lease = lease.lease();
    task.version = version_;
    task.sample.key = {lease.stage(), lease.rollout(), lease.prompt(), sample};
    task.sample.problem_id = lease.problem_id();
    task.sample.temperature = lease.temperature();
    for (int32_t token : lease.prompt_tokens()) {
      task.sample.tokens.push_back({token, TokenSource::kPrompt, 0, 0});
    }
    task.reward = {.completion = "",
                   .verifier = lease.verifier(),
                   .gold = lease.gold(),
                   .language = lease.language(),
                   .completion_tokens = 0,
                   .max_new_tokens = lease.max_new_tokens(),
                   .finished = true};
    GenerateRequest request;
    request.id = id;
    request.prompt.assign(lease.prompt_tokens().begin(), lease.prompt_tokens().end());
    request.max_new_tokens = lease.max_new_tokens();
    request.sampling = {lease.temperature(), lease.top_p(), lease.top_k()};
    request.stop_ids.assign(lease.stop_ids().begin(), lease.stop_ids().end());
    request.stop_strings.assign(lease.stop_strings().begin(), lease.stop_strings().end());
    request.stream =
        RandomStream{lease.seed(), HashName(lease.stage()), static_cast<uint64_t>(lease.rollout()),
                     static_cast<uint64_t>(lease.prompt()), static_cast<uint64_t>(sample)};
    request.group = static_cast<uint64_t>(lease.lease());
    if (begun) {
      Sample old = FromProto(*begun);
      for (size_t i = request.prompt.size(); i < old.tokens.size(); ++i) {
        task.sample.tokens.push_back(old.tokens[i]);
        request.generated.push_back(old.tokens[i].id);
      }
    }
    model_->engine().Add(std::move(request));
  }

  void Drawn(GenerateResult result) {
    Task& task = tasks_.at(result.id);
    Append(result, &task);
    task.drawn = true;
    task.sample.finish = result.finish;
    task.sample.routing_TLK = std::move(result.routing_TLK);
    model_->Describe(&task.sample);
    task.reward.completion = task.sample.text;
    task.reward.completion_tokens = task.sample.completion_tokens();
    task.reward.finished = result.finish == FinishReason::kStop;
    verifiers_.Submit(result.id, task.reward);
  }

  static void Append(const GenerateResult& result, Task* task) {
    size_t kept = result.tokens.size() - result.logp.size();
    for (size_t i = 0; i < result.logp.size(); ++i) {
      task->sample.tokens.push_back(
          {result.tokens[kept + i], TokenSource::kModel, result.logp[i], task->version});
    }
  }

  void CollectScores(bool nothing_else_to_do) {
    for (auto& scored : verifiers_.Poll(milliseconds(nothing_else_to_do ? 50 : 0))) {
      auto it = tasks_.find(scored.id);
      if (it == tasks_.end()) continue;  // its lease was cancelled
      Sample& sample = it->second.sample;
      ++scored_;
      sample.outcome = scored.reply.outcome;
      for (auto& [name, value] : scored.reply.rewards) sample.rewards[name] = value;
      *finished_.add_finished() = ToProto(sample);
      tasks_.erase(it);
    }
  }

  void SubmitIfDue(Session& session) {
    if (finished_.finished_size() == 0) return;
    if (!tasks_.empty() && Clock::now() - last_submit_ < kSubmitEvery) return;
    session.Submit(finished_);
    finished_.Clear();
    last_submit_ = Clock::now();
  }

  void Drop(int64_t lease) {
    for (auto it = tasks_.begin(); it != tasks_.end();) {
      if (it->second.lease != lease) {
        ++it;
        continue;
      }
      if (!it->second.drawn) model_->engine().Cancel(it->first);
      it = tasks_.erase(it);
    }
  }

  // Hands every lease back: finished samples, and the tokens so far of the others.
  void GiveBack(Session& session, const std::string& why) {
    auto deadline = Clock::now() + kVerifierPatience;
    while (verifiers_.pending() > 0 && Clock::now() < deadline) CollectScores(true);
    std::set<int64_t> leases;
    for (GenerateResult& result : model_->engine().Drain()) {
      Task& task = tasks_.at(result.id);
      leases.insert(task.lease);
      Append(result, &task);
      task.sample.finish = FinishReason::kCancelled;
      if (!result.tokens.empty()) *finished_.add_continued() = ToProto(task.sample);
      tasks_.erase(result.id);
    }
    for (int64_t lease : leases) finished_.add_returned_leases(lease);
    bool anything = finished_.finished_size() + finished_.returned_leases_size() > 0;
    if (!leases.empty()) finished_.set_error(why);
    if (anything) session.Submit(finished_);
    finished_.Clear();
  }

  const WorkerOptions& options_;
  const Security& security_;
  VerifierPool& verifiers_;
  const std::atomic<bool>& stop_;
  bool connected_ = false;
  WeightSync weights_;
  std::string config_;
  std::unique_ptr<WorkerModel> model_;
  int64_t version_ = 0;
  std::string weight_digest_;
  std::map<uint64_t, Task> tasks_;
  uint64_t next_task_ = 1;
  proto::SubmitRequest finished_;
  int64_t scored_ = 0;
  Clock::time_point last_submit_, next_lease_;
};

}  // namespace

int RunWorker(const WorkerOptions& given, const std::atomic<bool>& stop) {
  WorkerOptions options = given;
  if (options.name.empty()) {
    char host[64] = {};
    gethostname(host, sizeof host - 1);
    options.name = fmt::format("{}:{}", host, getpid());
  }
  // Helpers are started before anything of gRPC, so that they inherit none of it.
  VerifierPool::Options helpers;
  helpers.helpers = options.verifier_helpers;
  VerifierPool verifiers(helpers);
  auto last_contact = Clock::now();
  std::unique_ptr<Worker> worker;
  Security security{"", options.tls_certificate, options.tls_key, options.tls_ca};
  std::string problem = "nothing tried yet";
  while (!stop) {
    try {
      security.secret = options.secret.empty() ? ReadLine(options.secret_file) : options.secret;
      std::string address = options.coordinator_file.empty() ? options.coordinator
                                                             : ReadLine(options.coordinator_file);
      if (!address.empty() && !security.secret.empty()) {
        if (!worker) worker = std::make_unique<Worker>(options, security, verifiers, stop);
        if (worker->Serve(address)) return 0;
      } else {
        problem = "there is no coordinator address or secret yet";
      }
    } catch (const RefusedError& e) {
      // A new run in the same folder may have a new secret: only a fixed one is refused for good.
      fmt::print(stderr, "hone: {}\n", e.what());
      return 1;
    } catch (const CommError& e) {
      problem = e.what();
      if (worker && worker->was_connected()) last_contact = Clock::now();
    }
    if (Clock::now() - last_contact > std::chrono::seconds(options.patience_seconds)) {
      fmt::print(stderr, "hone: no coordinator for {} s: {}\n", options.patience_seconds, problem);
      return 1;
    }
    std::this_thread::sleep_for(milliseconds(200));
  }
  return 0;
}

}  // namespace hone::rl
