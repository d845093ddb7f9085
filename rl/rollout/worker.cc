#include "rl/rollout/worker.h"

#include <unistd.h>

#include <map>
#include <optional>
#include <set>
#include <thread>

#include "data/tokenizer.h"
#include "rl/reward/verifier_pool.h"
#include "rl/rollout/inference_engine.h"
#include "rl/rollout/weight_publisher.h"
#include "rl/rollout/wire.h"
#include "rl/rollout/worker_model.h"
#include "rl/rollout/worker_session.h"

namespace hone::rl {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int64_t kLeaseWaitMs = 1000;
constexpr auto kLeaseEvery = milliseconds(50);  // while there is work already
constexpr auto kAfterFailure = milliseconds(200);
constexpr auto kSubmitEvery = milliseconds(100);
constexpr int64_t kMaxReadings = 1024;  // samples asked for at once
constexpr int64_t kReadTokens = 4096;   // of one forward, unless a sample alone is longer
constexpr auto kVerifierPatience =
    std::chrono::seconds(30);  // when the last samples are being scored

// A sample being drawn or scored.
struct Task {
  int64_t lease = 0;
  Sample sample;            // prompt tokens, and tokens of earlier turns and leases
  GenerateRequest request;  // of a turn, without what is drawn already
  EnvironmentConfig environment;
  RewardRequest reward;
  int64_t version = 0;
  bool asked = false;  // the environment is to answer
  bool drawn = false;

  // Answers so far. Two never stand side by side: a call is between them.
  int64_t Answers() const {
    int64_t answers = 0;
    TokenSource before = TokenSource::kPrompt;
    for (const SampleToken& t : sample.tokens) {
      answers += t.source == TokenSource::kEnvironment && before != TokenSource::kEnvironment;
      before = t.source;
    }
    return answers;
  }
};

// Samples to be read with frozen weights, and how many of them are done.
struct Reading {
  LeaseKind kind = LeaseKind::kLogprob;
  WeightVersion weights;
  double temperature = 1;
  std::vector<Sample> samples;
  size_t next = 0;
};

WeightVersion VersionOf(const proto::WeightVersion& m) {
  return {m.version(), m.digest(), {m.endpoints().begin(), m.endpoints().end()}};
}

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
    Session session(options_.name, security_, address, options_.device);
    proto::RegisterReply hello = session.Register("");
    connected_ = true;
    if (!model_ || hello.config() != config_) {
      config_ = hello.config();
      model_.reset();
      model_ = std::make_unique<WorkerModel>(config_, options_.threads, options_.device);
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
    readings_.clear();
    finished_.Clear();
    if (model_->takes_turns()) model_->ReleaseMemory();
    released_ = model_->takes_turns();
    last_submit_ = next_lease_ = Clock::now();
    host_bytes_before_ = weights_.host_bytes();
  }

  bool Loop(Session& session, Heartbeats& heartbeats) {
    for (;;) {
      if (stop_) {
        GiveBackAll(session, "the worker was asked to stop");
        return true;
      }
      bool idle = !Working() && finished_.finished_size() == 0;
      int64_t room =
          std::max<int64_t>(0, model_->max_batch() * 2 - static_cast<int64_t>(tasks_.size()));
      int64_t readings = readings_.empty() ? kMaxReadings : 0;
      if (room + readings > 0 && Clock::now() >= next_lease_) {
        next_lease_ = Clock::now() + (idle ? milliseconds(0) : kLeaseEvery);
        proto::LeaseReply reply =
            session.TakeLeases(room, readings, idle ? kLeaseWaitMs : 0, released_);
        if (reply.shutdown() && idle) return true;
        if (reply.release_memory() && !released_) ReleaseMemory(session);
        if (reply.leases_size() > 0) released_ = false;
        for (const proto::Lease& lease : reply.leases()) Accept(session, lease);
      }
      // A busy coordinator answers at once that there is nothing.
      if (idle && !Working()) std::this_thread::sleep_for(milliseconds(10));
      ReadSome(session);
      for (GenerateResult& result : model_->engine().Step()) Drawn(std::move(result));
      CollectScores(model_->engine().pending() == 0 && readings_.empty() && !tasks_.empty());
      SubmitIfDue(session);
      Heartbeats::News news =
          heartbeats.Exchange(Progress(), weights_.host_bytes() - host_bytes_before_);
      for (int64_t lease : news.cancelled_leases) Drop(lease);
      if (news.shutdown) return true;
    }
  }

  // Anything that ascends while this worker gets on.
  int64_t Progress() const {
    EngineStats stats = model_->engine().stats();
    return stats.prefill_tokens + stats.decoded_tokens + scored_ + read_;
  }
  bool Working() const { return !tasks_.empty() || !readings_.empty(); }

  // New weights are fetched once nothing of the old ones is under way; what is, goes back
  // half-drawn.
  void UseWeights(Session& session, const proto::WeightVersion& wanted) {
    if (wanted.version() == version_ && wanted.digest() == weight_digest_) return;
    bool drawing = model_->engine().pending() > 0;
    for (const auto& [id, task] : tasks_) drawing = drawing || task.asked;
    if (drawing) GiveBack(session, "newer weights are wanted");
    WeightVersion version = VersionOf(wanted);
    version_ = 0;  // until the fetch is checked, the weights are neither
    weights_.Fetch(version, model_->State());
    model_->engine().Drain();
    version_ = version.version;
    weight_digest_ = version.digest;
  }

  // It is the learner's turn. It hears of the release with the next request for leases.
  void ReleaseMemory(Session& session) {
    GiveBackAll(session, "it is the learner's turn");
    tasks_.clear();
    model_->ReleaseMemory();
    released_ = true;
    next_lease_ = Clock::now();
  }

  // A lease that cannot be worked on goes back with the reason, and so somebody else may try.
  void Refuse(Session& session, int64_t lease, const std::string& why) {
    model_->CheckDevice();  // else it would refuse all that it is given
    Drop(lease);
    proto::SubmitRequest request;
    request.add_returned_leases(lease);
    request.set_error(why);
    session.Submit(std::move(request));
    next_lease_ = Clock::now() + kAfterFailure;
  }

  void Accept(Session& session, const proto::Lease& lease) {
    if (lease.kind() != static_cast<int>(LeaseKind::kGenerate)) return AddReading(lease);
    try {
      UseWeights(session, lease.weights());
      std::map<int64_t, const proto::Sample*> partial;
      for (const proto::Sample& m : lease.partial()) partial[m.key().sample()] = &m;
      for (int64_t s : lease.samples()) {
        auto begun = partial.find(s);
        AddTask(lease, s, begun == partial.end() ? nullptr : begun->second);
      }
    } catch (const Error& e) {
      Refuse(session, lease.lease(), e.what());
    }
  }

  void AddReading(const proto::Lease& lease) {
    Reading& reading = readings_[lease.lease()];
    reading.kind = static_cast<LeaseKind>(lease.kind());
    reading.weights = VersionOf(lease.weights());
    reading.temperature = lease.temperature();
    for (const proto::Sample& m : lease.partial()) {
      Sample& sample = reading.samples.emplace_back(FromProto(m));
      sample.key.stage = lease.stage();
      sample.key.rollout = lease.rollout();
    }
  }

  // One forward over samples of the oldest such lease, between two steps of the engine.
  void ReadSome(Session& session) {
    if (readings_.empty()) return;
    const int64_t lease = readings_.begin()->first;
    Reading& reading = readings_.begin()->second;
    try {
      SequenceReader& reader = model_->Reader(reading.kind);
      const WeightVersion& wanted = reading.weights;
      if (reader.version() != wanted.version || reader.digest() != wanted.digest) {
        reader.set_version(0, "");
        weights_.Fetch(wanted, reader.State());
        reader.set_version(wanted.version, wanted.digest);
      }
      std::vector<Sample> batch;
      int64_t tokens = 0;
      for (; reading.next < reading.samples.size() && tokens < kReadTokens; ++reading.next) {
        tokens += static_cast<int64_t>(reading.samples[reading.next].tokens.size());
        batch.push_back(std::move(reading.samples[reading.next]));
      }
      reader.Read(reading.temperature, &batch);
      for (const Sample& sample : batch) *finished_.add_finished() = ToProto(sample);
      read_ += tokens;
      if (reading.next == reading.samples.size()) readings_.erase(lease);
    } catch (const Error& e) {
      Refuse(session, lease, e.what());
    }
  }

  void AddTask(const proto::Lease& lease, int64_t sample, const proto::Sample* begun) {
    uint64_t id = next_task_++;
    Task& task = tasks_[id];
    task.lease = lease.lease();
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
    GenerateRequest& request = task.request;
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
    if (lease.has_environment()) {
      task.environment = FromProto(lease.environment());
      request.stop_strings.push_back(task.environment.call_end);
    }
    if (begun) {
      Sample old = FromProto(*begun);
      for (size_t i = request.prompt.size(); i < old.tokens.size(); ++i) {
        task.sample.tokens.push_back(old.tokens[i]);
      }
    }
    if (!AskEnvironment(task)) DrawTurn(task);
  }

  // Goes on drawing behind the tokens that are there.
  void DrawTurn(Task& task) {
    task.version = version_;
    GenerateRequest request = task.request;
    for (size_t i = request.prompt.size(); i < task.sample.tokens.size(); ++i) {
      request.generated.push_back(task.sample.tokens[i].id);
    }
    model_->engine().Add(std::move(request));
  }

  // Hands the call with which the sample ends to its environment; false when it ends with none. A
  // call for which there is no room or turn left ends the sample.
  bool AskEnvironment(Task& task) {
    if (!task.environment.defined()) return false;
    std::optional<std::string> call = CallIn(task.environment, model_->LastTurn(task.sample));
    if (!call) return false;
    if (task.sample.completion_tokens() >= Room(task) ||
        task.Answers() >= task.environment.max_calls) {
      Conclude(task, FinishReason::kLength);
      return true;
    }
    RewardRequest request;
    request.environment = task.environment.name;
    request.completion = *call;
    verifiers_.Submit(task.request.id, request);
    task.asked = true;
    return true;
  }

  // Tokens that the completion may have.
  int64_t Room(const Task& task) const {
    return std::min(task.request.max_new_tokens,
                    model_->max_tokens() - task.sample.prompt_tokens());
  }

  // The environment's tokens, and the model's next turn; or the end, where no token of it would
  // fit.
  void Answer(Task& task, const RewardReply& reply) {
    task.asked = false;
    bool answered = reply.outcome == Outcome::kCorrect;
    std::vector<int32_t> ids =
        model_->Encode(WithMarks(task.environment, answered ? reply.detail : "error"));
    int64_t length = task.sample.completion_tokens() + static_cast<int64_t>(ids.size());
    if (length >= Room(task)) return Conclude(task, FinishReason::kLength);
    for (int32_t id : ids) task.sample.tokens.push_back({id, TokenSource::kEnvironment, 0, 0});
    DrawTurn(task);
  }

  void Drawn(GenerateResult result) {
    Task& task = tasks_.at(result.id);
    Append(result, &task);
    task.sample.routing_TLK = std::move(result.routing_TLK);
    bool asked = result.finish == FinishReason::kStop && AskEnvironment(task);
    if (!asked) Conclude(task, result.finish);
  }

  // Nothing more is drawn: the sample is to be judged.
  void Conclude(Task& task, FinishReason finish) {
    task.drawn = true;
    task.sample.finish = finish;
    model_->Describe(&task.sample, task.request.stop_ids);
    if (task.environment.defined()) {
      task.sample.rewards["tool_calls"] = static_cast<double>(task.Answers());
    }
    task.reward.completion = task.sample.text;
    task.reward.completion_tokens = task.sample.completion_tokens();
    task.reward.finished = finish == FinishReason::kStop;
    verifiers_.Submit(task.request.id, task.reward);
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
      ++scored_;
      if (it->second.asked) {
        Answer(it->second, scored.reply);
        continue;
      }
      Sample& sample = it->second.sample;
      sample.outcome = scored.reply.outcome;
      for (auto& [name, value] : scored.reply.rewards) sample.rewards[name] = value;
      *finished_.add_finished() = ToProto(sample);
      tasks_.erase(it);
    }
  }

  void SubmitIfDue(Session& session) {
    if (finished_.finished_size() == 0) return;
    if (Working() && Clock::now() - last_submit_ < kSubmitEvery) return;
    session.Submit(finished_);
    finished_.Clear();
    last_submit_ = Clock::now();
  }

  void Drop(int64_t lease) {
    readings_.erase(lease);
    for (auto it = tasks_.begin(); it != tasks_.end();) {
      if (it->second.lease != lease) {
        ++it;
        continue;
      }
      if (!it->second.drawn) model_->engine().Cancel(it->first);
      it = tasks_.erase(it);
    }
  }

  void GiveBackAll(Session& session, const std::string& why) {
    for (const auto& [lease, reading] : readings_) finished_.add_returned_leases(lease);
    readings_.clear();
    GiveBack(session, why);
  }

  // Hands every lease that is drawn for back: finished samples, and the tokens so far of the
  // others.
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
  bool released_ = false;  // holds no memory but its weights': only where turns are taken
  WeightSync weights_;
  int64_t host_bytes_before_ = 0;  // of earlier sessions
  std::string config_;
  std::unique_ptr<WorkerModel> model_;
  int64_t version_ = 0;
  std::string weight_digest_;
  std::map<uint64_t, Task> tasks_;
  uint64_t next_task_ = 1;
  std::map<int64_t, Reading> readings_;  // by lease, so the oldest first
  proto::SubmitRequest finished_;
  int64_t scored_ = 0, read_ = 0;
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
  const Security given_security{options.secret, options.tls_certificate, options.tls_key,
                                options.tls_ca};
  Security security;
  std::string problem = "nothing tried yet";
  while (!stop) {
    try {
      const Security now = SecurityOf(options.secret_file, given_security);
      if (now != security) worker.reset();  // another run in the same folder
      security = now;
      std::string address = options.coordinator_file.empty() ? options.coordinator
                                                             : FirstLine(options.coordinator_file);
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
