#include "rl/stages/sample_pool.h"

#include <iostream>

#include "data/tokenizer.h"
#include "parallel/comm/process_group.h"
#include "rl/rollout/journal.h"
#include "rl/rollout/worker_config.h"
#include "runtime/philox.h"

namespace hone::rl {
namespace {

constexpr auto kStuck = std::chrono::seconds(5);
constexpr auto kLonely = std::chrono::seconds(30);    // without a worker, before that is said
constexpr auto kHandover = std::chrono::seconds(60);  // of workers' memory, once all is drawn

// Length-prefixed, so that any number of samples is one message.
std::string EncodeSamples(const std::vector<Sample>& samples) {
  std::string all;
  for (const Sample& sample : samples) {
    std::string bytes = EncodeSample(sample);
    uint64_t size = bytes.size();
    all.append(reinterpret_cast<const char*>(&size), sizeof size);
    all += bytes;
  }
  return all;
}

std::vector<Sample> DecodeSamples(std::string_view all) {
  std::vector<Sample> samples;
  while (!all.empty()) {
    uint64_t size = 0;
    Check<DataError>(all.size() >= sizeof size, "[pool] a batch of samples ends early");
    std::copy_n(all.data(), sizeof size, reinterpret_cast<char*>(&size));
    all.remove_prefix(sizeof size);
    Check<DataError>(all.size() >= size, "[pool] a batch of samples ends early");
    samples.push_back(DecodeSample(all.substr(0, size)));
    all.remove_prefix(size);
  }
  return samples;
}

WorkerConfig MakeWorkerConfig(const RunConfig& config) {
  WorkerConfig worker;
  worker.model = config.model;
  worker.tokenizer = config.tokenizer;
  worker.special_tokens = config.special_tokens;
  worker.dtype = config.train.dtype;
  worker.numerics = config.rollout.numerics.value_or(config.train.numerics);
  worker.engine.max_batch = config.rollout.max_batch;
  worker.engine.page_size = config.rollout.page_size;
  worker.engine.cache_pages = config.rollout.cache_pages;
  worker.engine.prefill_chunk = config.rollout.prefill_chunk;
  worker.engine.lazy_cache = config.rollout.colocated;
  worker.engine.max_tokens = config.model.max_position_embeddings;
  for (const StageConfig& stage : config.stages) {
    if (stage.grpo.replay_routing) worker.engine.record_routing = true;
  }
  if (config.rollout.absorb) worker.engine.mla_decode = model::MlaDecode::kAbsorb;
  return worker;
}

}  // namespace

SamplePool::SamplePool(Learner& learner, RunDirectory& directory, const std::string& secret,
                       const std::atomic<bool>& stop)
    : learner_(learner), directory_(directory), stop_(stop) {
  const RunConfig& config = learner.config();
  auto secure = [&](auto& server) {
    const size_t end = secret.find('\n');
    const bool own = end != std::string::npos;
    const std::string pem = own ? secret.substr(end + 1) : "";
    server.secret = secret.substr(0, end);
    server.tls_certificate = own ? pem : config.rollout.tls_certificate;
    server.tls_key = own ? pem : config.rollout.tls_key;
    server.tls_ca = own ? pem : config.rollout.tls_ca;
  };
  WeightPublisher::Options publisher;
  secure(publisher);
  // The coordinator's host with a port of its own.
  publisher.listen = config.rollout.listen.substr(0, config.rollout.listen.rfind(':')) + ":0";
  if (config.rollout.publish == RolloutConfig::Publish::kDevice) {
    publisher.place = learner.ctx().device();
  }
  publisher.versions = static_cast<size_t>(config.rollout.versions());
  publisher_ = std::make_unique<WeightPublisher>(publisher);
  if (learner.mesh().world()->rank() != 0) return;
  Coordinator::Options options;
  options.listen = config.rollout.listen;
  secure(options);
  options.worker_config = WriteWorkerConfig(MakeWorkerConfig(config));
  options.model_digest = ModelDigest(
      config.model, data::LoadTokenizer(config.tokenizer, config.special_tokens)->Digest());
  options.lease = std::chrono::seconds(config.rollout.lease_seconds);
  options.prompts_per_lease = config.rollout.prompts_per_lease;
  options.journal_dir = directory.journal();
  options.vocab_size = config.model.vocab_size;
  options.device = learner.ctx().device();
  options.colocated = config.rollout.colocated;
  options.any_build = config.rollout.allow_logprob_gap;
  coordinator_ = std::make_unique<Coordinator>(directory.fs(), options);
  directory.fs().WriteAtomically(directory.coordinator_address(), coordinator_->address());
}

SamplePool::~SamplePool() {
  if (coordinator_) coordinator_->Shutdown();
}

// Ascending over restarts, since the incarnation is.
int64_t SamplePool::NextVersion() {
  int64_t incarnation = std::stoll(
      learner_.mesh().world()->AllGatherBytes(std::to_string(directory_.incarnation()))[0]);
  return incarnation * 1'000'000'000 + ++versions_;
}

WeightVersion SamplePool::Publish() {
  WeightVersion version =
      publisher_->Publish(*learner_.mesh().world(), NextVersion(), learner_.Weights());
  if (coordinator_) coordinator_->Publish(version);
  return version;
}

WeightVersion SamplePool::Pin(const std::string& name, const SlabIndex& slabs) {
  WeightVersion version = publisher_->Publish(*learner_.mesh().world(), NextVersion(), slabs, name);
  if (coordinator_) coordinator_->Publish(version, name);
  return version;
}

int64_t SamplePool::WeightHostBytes() const {
  const int64_t fetched = coordinator_ ? coordinator_->stats().weight_host_bytes : 0;
  const std::string mine = std::to_string(publisher_->host_bytes() + fetched);
  int64_t sum = 0;
  for (const std::string& bytes : learner_.mesh().world()->AllGatherBytes(mine)) {
    sum += std::stoll(bytes);
  }
  return sum;
}

SlabIndex SamplePool::Pinned(const std::string& name) const { return publisher_->Pinned(name); }

void SamplePool::Release(const std::string& name) {
  if (coordinator_) coordinator_->Release(name);
  publisher_->Release(name);
}

void SamplePool::Begin(RolloutPlan plan) {
  const RolloutConfig& rollout = learner_.config().rollout;
  for (const RolloutPrompt& prompt : plan.prompts) {
    rollout.CheckCache(static_cast<int64_t>(prompt.tokens.size()) + plan.max_new_tokens,
                       learner_.config().model.max_position_embeddings,
                       fmt::format("stage '{}': problem {}", plan.stage, prompt.problem.id));
  }
  if (coordinator_) coordinator_->Begin(plan);
  if (rollout.colocated) GiveMemory();
}

void SamplePool::GiveMemory() {
  learner_.ReleaseMemory();
  learner_.mesh().world()->Barrier();  // nobody draws before every rank has let go
  if (coordinator_) coordinator_->GiveMemory();
}

std::vector<Sample> SamplePool::Read(const Reading& reading, const std::vector<Sample>& samples) {
  RolloutPlan plan;
  plan.kind = reading.kind;
  plan.stage = reading.stage;
  plan.rollout = reading.rollout;
  plan.weight_version = reading.weights.version;
  plan.weight_digest = reading.weights.digest;
  plan.sampling.temperature = reading.temperature;
  for (const Sample& sample : samples) {
    Sample& bare = plan.given.emplace_back();
    bare.key = sample.key;
    for (const SampleToken& t : sample.tokens) bare.tokens.push_back({t.id, t.source, 0, 0});
  }
  Begin(std::move(plan));
  return Finish(reading.stage, reading.rollout, Stop::kWhenStuck);
}

bool SamplePool::GoOn(const Coordinator::Progress& progress, bool stopping, Stop when) {
  auto now = std::chrono::steady_clock::now();
  if (!stopping) unstopped_ = now;
  return !stopping ||
         (when == Stop::kWhenStuck && now - std::max(unstopped_, progress.last_progress) < kStuck);
}

std::vector<Sample> SamplePool::Finish(const std::string& stage, int64_t rollout, Stop when) {
  auto& world = *learner_.mesh().world();
  if (!coordinator_) {
    // The other ranks sleep in this wait: rank 0 sends "still waiting" long before a deadline
    // passes.
    for (;;) {
      std::string bytes = world.AllGatherBytes(stop_.load() ? "stop" : "")[0];
      if (bytes == "wait") continue;
      Check<StoppedEarly>(bytes != "stop", "[run] stopped while sampling '{}'", stage);
      if (bytes.starts_with("error")) throw Error(bytes.substr(5));
      return DecodeSamples(std::string_view(bytes).substr(4));
    }
  }
  std::string outcome;
  std::vector<Sample> samples;
  auto tell = [&](const std::string& bytes) { return world.AllGatherBytes(bytes); };
  auto last = std::chrono::steady_clock::now();
  unstopped_ = last;
  bool stopping = false, told = false;
  const auto begun = last;
  try {
    samples = coordinator_->Finish(
        stage, rollout, std::chrono::seconds(learner_.config().rollout.stall_seconds),
        [&](const Coordinator::Progress& progress) {
          auto now = std::chrono::steady_clock::now();
          told = told || progress.pool.workers > 0;
          if (!told && now - begun > kLonely) {
            told = true;
            std::cerr << fmt::format(
                "hone: '{}' has waited {} s for a rollout worker; start one by `hone worker "
                "--run-dir {}`\n",
                stage, kLonely.count(), directory_.root());
          }
          if (world.size() > 1 && now - last > std::chrono::seconds(1)) {
            last = now;
            for (const std::string& s : tell("wait")) stopping = stopping || s == "stop";
          }
          return GoOn(progress, stopping || stop_.load(), when);
        });
    if (learner_.config().rollout.colocated) coordinator_->TakeMemory(kHandover);
    outcome = "done" + EncodeSamples(samples);
  } catch (const StoppedEarly&) {
    outcome = "stop";
  } catch (const Error& e) {
    outcome = std::string("error") + e.what();
  }
  tell(outcome);
  Check<StoppedEarly>(outcome != "stop", "[run] stopped while sampling '{}'", stage);
  if (outcome.starts_with("error")) throw Error(outcome.substr(5));
  return samples;
}

}  // namespace hone::rl
