#include "rl/rollout/coordinator.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "rl/rollout/lease_book.h"
#include "rl/rollout/wire.h"
#include "rollout.grpc.pb.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

constexpr auto kHousekeeping = std::chrono::milliseconds(200);
constexpr int64_t kLongestWaitMs = 2000;
constexpr int kMissedHeartbeats = 5;  // then a worker is taken for dead
constexpr int kServerThreads = 64;
constexpr size_t kVersionsKnown = 2;

grpc::Status Refused(grpc::StatusCode code, const std::string& why) { return {code, why}; }

}  // namespace

struct Coordinator::Impl final : proto::RolloutPool::Service {
  Impl(FileSystem& fs, Options o)
      : options(std::move(o)),
        build(BuildId(options.device)),
        learners_turn(options.colocated),
        book(fs, options.journal_dir, options.lease, options.vocab_size) {
    security = {options.secret, options.tls_certificate, options.tls_key, options.tls_ca};
    grpc::ServerBuilder builder;
    grpc::ResourceQuota quota;
    quota.SetMaxThreads(kServerThreads);
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    int port = 0;
    builder.AddListeningPort(options.listen, ServerCredentials(security, options.listen), &port);
    builder.RegisterService(this);
    server = builder.BuildAndStart();
    Check<CommError>(server != nullptr && port != 0, "[rollout] cannot listen on {}",
                     options.listen);
    address = ReachableAddress(options.listen, port);
    housekeeper = std::thread([this] { KeepHouse(); });
  }

  ~Impl() override {
    {
      std::lock_guard lock(mutex);
      shutdown = ending = true;
    }
    changed.notify_all();
    housekeeper.join();
    server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  }

  // ---- What workers call
  // --------------------------------------------------------------------------

  struct WorkerState {
    std::string name;
    Clock::time_point last_seen;
    int64_t progress = 0;
    int64_t weight_host_bytes = 0;
    bool memory_released = true;  // it comes without
  };

  // The caller's worker; refused when its secret is wrong or it is not registered. Needs the lock.
  grpc::Status Identify(const grpc::ServerContext* context, int64_t worker) {
    grpc::Status status = CheckSecret(*context, options.secret);
    if (!status.ok()) {
      ++counts.refused;
      return status;
    }
    auto it = workers.find(worker);
    if (it == workers.end()) {
      return Refused(grpc::StatusCode::NOT_FOUND,
                     fmt::format("worker {} is not registered", worker));
    }
    it->second.last_seen = Clock::now();
    return status;
  }

  grpc::Status Register(grpc::ServerContext* context, const proto::RegisterRequest* request,
                        proto::RegisterReply* reply) override {
    std::lock_guard lock(mutex);
    grpc::Status status = CheckSecret(*context, options.secret);
    std::string why;
    if (request->protocol() != kProtocolVersion) {
      why = fmt::format("protocol {} where {} is spoken: update the worker", request->protocol(),
                        kProtocolVersion);
    } else if (request->build() != build && !options.any_build) {
      why = fmt::format(
          "build '{}' where the learner is '{}': log-probabilities would differ; "
          "rollout.allow_logprob_gap: true takes such workers",
          request->build(), build);
    } else if (!request->model_digest().empty() &&
               request->model_digest() != options.model_digest) {
      why = fmt::format("model {} where the run trains {}", request->model_digest(),
                        options.model_digest);
    }
    if (!status.ok() || !why.empty()) {
      ++counts.refused;
      return status.ok() ? Refused(grpc::StatusCode::FAILED_PRECONDITION, why) : status;
    }
    reply->set_config(options.worker_config);
    reply->set_model_digest(options.model_digest);
    reply->set_heartbeat_ms(options.heartbeat.count());
    reply->set_max_message_bytes(options.max_message_bytes);
    if (request->model_digest().empty()) return grpc::Status::OK;  // it has yet to build the model
    reply->set_worker(next_worker++);
    workers[reply->worker()] = {request->name(), Clock::now()};
    return grpc::Status::OK;
  }

  grpc::Status Heartbeat(grpc::ServerContext* context, const proto::HeartbeatRequest* request,
                         proto::HeartbeatReply* reply) override {
    std::lock_guard lock(mutex);
    grpc::Status status = Identify(context, request->worker());
    if (!status.ok()) return status;
    WorkerState& worker = workers.at(request->worker());
    if (request->progress() != worker.progress) {
      book.Renew(request->worker());
      last_progress = Clock::now();
    }
    worker.progress = request->progress();
    counts.weight_host_bytes += request->weight_host_bytes() - worker.weight_host_bytes;
    worker.weight_host_bytes = request->weight_host_bytes();
    reply->set_shutdown(shutdown);
    for (int64_t id : book.TakeCancelled(request->worker())) reply->add_cancelled_leases(id);
    return grpc::Status::OK;
  }

  grpc::Status TakeLeases(grpc::ServerContext* context, const proto::LeaseRequest* request,
                          proto::LeaseReply* reply) override {
    std::unique_lock lock(mutex);
    grpc::Status status = Identify(context, request->worker());
    if (!status.ok()) return status;
    // Each wait holds a thread of the server: when many do, the others are answered at once.
    int64_t wait_ms = waiting_calls < kServerThreads / 2 ? request->wait_ms() : 0;
    auto until =
        Clock::now() + std::chrono::milliseconds(std::clamp<int64_t>(wait_ms, 0, kLongestWaitMs));
    workers.at(request->worker()).memory_released = request->memory_released();
    if (learners_turn) changed.notify_all();
    ++waiting_calls;
    std::vector<OpenLease*> leases;
    for (;;) {
      if (shutdown || (learners_turn && !request->memory_released())) break;
      if (!learners_turn) {
        leases = book.Take(request->worker(), options.prompts_per_lease, request->max_samples(),
                           request->max_readings());
      }
      if (!leases.empty() || changed.wait_until(lock, until) == std::cv_status::timeout) break;
      // It may have been taken for dead meanwhile; a lease would then be nobody's.
      if (!workers.count(request->worker()) || context->IsCancelled()) break;
    }
    --waiting_calls;
    reply->set_shutdown(shutdown);
    reply->set_release_memory(learners_turn);
    if (!leases.empty()) workers.at(request->worker()).memory_released = false;
    for (OpenLease* lease : leases) {
      if (const WeightVersion* version = VersionOf(lease->plan->plan)) {
        FillLease(*lease, *version, reply->add_leases());
        ++counts.leased;
      } else {
        failure = fmt::format("[rollout] weights {}, which '{}' rollout {} is for, are gone",
                              lease->plan->plan.weight_version, lease->plan->plan.stage,
                              lease->plan->plan.rollout);
        book.Return(lease->id);
      }
    }
    return grpc::Status::OK;
  }

  // The version of that number, or null when it is gone.
  const WeightVersion* Known(int64_t version) const {
    auto it = versions.find(version);
    if (it != versions.end()) return &it->second;
    for (const auto& [name, held] : pinned) {
      if (held.version == version) return &held;
    }
    return nullptr;
  }

  static void FillVersion(const WeightVersion& version, proto::WeightVersion* m) {
    m->set_version(version.version);
    m->set_digest(version.digest);
    for (const std::string& e : version.endpoints) m->add_endpoints(e);
  }

  // What leases of the plan are worked on with; null when it is gone.
  const WeightVersion* VersionOf(const RolloutPlan& plan) const {
    return plan.weight_version != 0 ? Known(plan.weight_version) : &versions.rbegin()->second;
  }

  void FillLease(const OpenLease& lease, const WeightVersion& version, proto::Lease* m) {
    const RolloutPlan& plan = lease.plan->plan;
    m->set_lease(lease.id);
    m->set_kind(static_cast<int>(plan.kind));
    m->set_stage(plan.stage);
    m->set_rollout(plan.rollout);
    m->set_prompt(lease.prompt);
    m->mutable_samples()->Add(lease.samples.begin(), lease.samples.end());
    m->set_temperature(plan.sampling.temperature);
    FillVersion(version, m->mutable_weights());
    for (int64_t s : lease.samples) {
      auto& begun = lease.plan->partial;
      if (plan.kind != LeaseKind::kGenerate) {
        *m->add_partial() = ToProto(lease.plan->Given({lease.prompt, s}));
      } else if (auto it = begun.find({lease.prompt, s}); it != begun.end()) {
        *m->add_partial() = ToProto(it->second);
      }
    }
    if (plan.kind == LeaseKind::kGenerate) FillSampling(lease, m);
  }

  void FillSampling(const OpenLease& lease, proto::Lease* m) {
    const RolloutPlan& plan = lease.plan->plan;
    const RolloutPrompt& prompt = plan.prompts[lease.plan->prompt_at.at(lease.prompt)];
    m->mutable_prompt_tokens()->Add(prompt.tokens.begin(), prompt.tokens.end());
    m->set_problem_id(prompt.problem.id);
    m->set_verifier(prompt.problem.verifier);
    m->set_gold(prompt.problem.answer);
    m->set_language(prompt.problem.language);
    m->set_seed(plan.seed);
    m->set_top_p(plan.sampling.top_p);
    m->set_top_k(plan.sampling.top_k);
    m->set_max_new_tokens(plan.max_new_tokens);
    m->mutable_stop_ids()->Add(plan.stop_ids.begin(), plan.stop_ids.end());
    for (const std::string& text : plan.stop_strings) m->add_stop_strings(text);
    m->set_record_routing(plan.record_routing);
    if (plan.environment.defined()) *m->mutable_environment() = ToProto(plan.environment);
  }

  grpc::Status Submit(grpc::ServerContext* context, const proto::SubmitRequest* request,
                      proto::SubmitReply* reply) override {
    std::lock_guard lock(mutex);
    grpc::Status status = Identify(context, request->worker());
    if (!status.ok()) return status;
    std::string why;
    for (const proto::Sample& m : request->finished()) TakeFinished(m, reply, &why);
    for (const proto::Sample& m : request->continued()) TakeContinued(m, &why);
    try {
      book.Commit();  // before the answer: what is acknowledged is on disk
    } catch (const Error& e) {
      why = e.what();
      if (failure.empty()) failure = why;  // the run's fault, not the worker's
    }
    book.Renew(request->worker());
    for (int64_t lease : request->returned_leases()) book.Return(lease, request->worker());
    if (!request->error().empty()) {
      fmt::print(stderr, "rollout: {} gave leases back: {}\n", workers[request->worker()].name,
                 request->error());
    }
    changed.notify_all();
    if (why.empty()) return grpc::Status::OK;
    ++counts.refused;
    return Refused(grpc::StatusCode::INVALID_ARGUMENT, why);
  }

  // One bad sample costs the others of its message nothing.
  void TakeFinished(const proto::Sample& m, proto::SubmitReply* reply, std::string* why) {
    bool repeat = false;
    std::string refused;
    OpenPlan* plan = book.Find(m.key().stage(), m.key().rollout());
    bool drawn = plan == nullptr || plan->plan.kind == LeaseKind::kGenerate;
    try {
      refused = book.Accept(FromProto(m), &repeat);
    } catch (const Error& e) {
      refused = e.what();
    }
    if (!refused.empty()) {
      *why = refused;
    } else if (repeat) {
      ++counts.repeats;
      reply->set_repeats(reply->repeats() + 1);
    } else {
      reply->set_accepted(reply->accepted() + 1);
      if (drawn) ++counts.outcomes[std::string(OutcomeName(static_cast<Outcome>(m.outcome())))];
    }
  }

  void TakeContinued(const proto::Sample& m, std::string* why) {
    std::string refused;
    try {
      refused = book.Continue(FromProto(m));
    } catch (const Error& e) {
      refused = e.what();
    }
    if (!refused.empty()) *why = refused;
  }

  grpc::Status Follow(grpc::ServerContext* context, const proto::FollowRequest*,
                      proto::FollowReply* reply) override {
    std::lock_guard lock(mutex);
    grpc::Status status = CheckSecret(*context, options.secret);
    if (!status.ok()) {
      ++counts.refused;
      return status;
    }
    reply->set_config(options.worker_config);
    reply->set_model_digest(options.model_digest);
    if (!versions.empty()) FillVersion(versions.rbegin()->second, reply->mutable_newest());
    return status;
  }

  // ---- Housekeeping
  // -------------------------------------------------------------------------------

  void KeepHouse() {
    std::unique_lock lock(mutex);
    while (!ending) {
      const auto due = Clock::now() + kHousekeeping;
      changed.wait_for(lock, kHousekeeping);
      const auto now = Clock::now();
      // While something held the lock for long, as a journal on a slow disk does, nobody was heard:
      // that is no silence of theirs.
      for (auto& [id, worker] : workers) {
        if (now > due) worker.last_seen = std::min(now, worker.last_seen + (now - due));
      }
      auto dead_since = now - kMissedHeartbeats * options.heartbeat;
      int64_t returned = book.ExpireOld();
      for (auto it = workers.begin(); it != workers.end();) {
        if (it->second.last_seen >= dead_since) {
          ++it;
          continue;
        }
        int64_t before = book.open_leases();
        book.ReturnAllOf(it->first);
        returned += before - book.open_leases();
        it = workers.erase(it);
      }
      counts.reissued += returned;
      if (returned > 0) changed.notify_all();
    }
  }

  Options options;
  std::string build;  // of the learner
  Security security;
  std::string address;
  std::unique_ptr<grpc::Server> server;
  std::thread housekeeper;

  mutable std::mutex mutex;
  std::condition_variable changed;
  bool shutdown = false, ending = false;
  bool learners_turn;   // with the memory that it shares with the workers
  std::string failure;  // the journal could not be written
  LeaseBook book;
  std::map<int64_t, WeightVersion> versions;
  std::map<std::string, WeightVersion> pinned;
  std::map<int64_t, WorkerState> workers;
  int64_t next_worker = 1;
  int waiting_calls = 0;  // TakeLeases that wait for work
  PoolStats counts;
  Clock::time_point last_progress;  // of any worker
};

Coordinator::Coordinator(FileSystem& fs, Options options)
    : impl_(std::make_unique<Impl>(fs, std::move(options))) {}
Coordinator::~Coordinator() = default;

std::string Coordinator::address() const { return impl_->address; }

void Coordinator::Publish(const WeightVersion& version, const std::string& pinned_as) {
  std::lock_guard lock(impl_->mutex);
  if (!pinned_as.empty()) {
    impl_->pinned[pinned_as] = version;
    return;
  }
  impl_->versions[version.version] = version;
  while (impl_->versions.size() > kVersionsKnown) impl_->versions.erase(impl_->versions.begin());
}

void Coordinator::Release(const std::string& pinned_as) {
  std::lock_guard lock(impl_->mutex);
  impl_->pinned.erase(pinned_as);
}

void Coordinator::Begin(const RolloutPlan& plan) {
  std::lock_guard lock(impl_->mutex);
  const WeightVersion* version = impl_->Known(plan.weight_version);
  bool any = plan.kind == LeaseKind::kGenerate && plan.weight_version == 0;
  Check(any ? !impl_->versions.empty() : version != nullptr,
        "[rollout] {} rollout {} wants weights {}, which are not published", plan.stage,
        plan.rollout, plan.weight_version);
  impl_->book.Open(plan,
                   any || plan.weight_digest.empty() || plan.weight_digest == version->digest);
  impl_->changed.notify_all();
}

std::vector<Sample> Coordinator::Finish(const std::string& stage, int64_t rollout,
                                        std::chrono::milliseconds stall,
                                        const std::function<bool(const Progress&)>& poll) {
  const auto begun = Clock::now();
  std::unique_lock lock(impl_->mutex);
  OpenPlan* plan = impl_->book.Find(stage, rollout);
  Check(plan != nullptr, "[rollout] {} rollout {} was not begun", stage, rollout);
  while (!plan->complete()) {
    Check<IoError>(impl_->failure.empty(), "{}", impl_->failure);
    Check<TimeoutError>(
        Clock::now() - std::max(begun, impl_->book.last_sample()) < stall,
        "[rollout] no sample of '{}' rollout {} arrived for {} s ({} of {} are here, {} "
        "workers are registered); look at the workers' logs",
        stage, rollout, stall.count() / 1000, plan->done.size(), plan->total,
        impl_->workers.size());
    Progress progress{static_cast<int64_t>(plan->done.size()), plan->total, plan->tokens,
                      impl_->counts, std::max(impl_->last_progress, impl_->book.last_sample())};
    progress.pool.workers = static_cast<int>(impl_->workers.size());
    lock.unlock();
    bool go_on = poll(progress);
    lock.lock();
    Check<StoppedEarly>(go_on, "[rollout] stopped while waiting for '{}' rollout {}", stage,
                        rollout);
    if (!plan->complete()) impl_->changed.wait_for(lock, kHousekeeping);
  }
  return impl_->book.Close(plan);
}

PoolStats Coordinator::stats() const {
  std::lock_guard lock(impl_->mutex);
  PoolStats stats = impl_->counts;
  stats.workers = static_cast<int>(impl_->workers.size());
  return stats;
}

void Coordinator::TakeMemory(std::chrono::milliseconds deadline) {
  const auto until = Clock::now() + deadline;
  std::unique_lock lock(impl_->mutex);
  impl_->learners_turn = true;
  impl_->changed.notify_all();
  for (;;) {
    std::string holders;
    for (const auto& [id, worker] : impl_->workers) {
      if (!worker.memory_released) holders += (holders.empty() ? "" : ", ") + worker.name;
    }
    if (holders.empty()) return;
    Check<TimeoutError>(Clock::now() < until,
                        "[rollout] after {} ms the learner still waits for memory that workers "
                        "hold: {}; look at their logs",
                        deadline.count(), holders);
    impl_->changed.wait_for(lock, kHousekeeping);
  }
}

void Coordinator::GiveMemory() {
  std::lock_guard lock(impl_->mutex);
  impl_->learners_turn = false;
  impl_->changed.notify_all();
}

void Coordinator::Shutdown() {
  std::lock_guard lock(impl_->mutex);
  impl_->shutdown = true;
  impl_->changed.notify_all();
}

}  // namespace hone::rl
