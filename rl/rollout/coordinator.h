// The centre of the rollout pool: hands out prompts as leases, journals what comes back.
//
// Workers (rollout/worker.h) register, heartbeat, lease, submit and pull weights over gRPC; they
// may join, leave, die or be slow at any time. A lease expires and is reissued; a finished sample
// is journalled before it is acknowledged; its key makes repeats harmless. gRPC stays out of this
// header.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/task.h"
#include "kernels/sampling/sampling.h"
#include "rl/reward/turn_environment.h"
#include "rl/rollout/sample.h"
#include "runtime/config.h"
#include "runtime/device.h"
#include "runtime/file_system.h"

namespace hone::rl {

// A published weight version: immutable, named by where it came from and what it is.
struct WeightVersion {
  int64_t version = 0;                 // ascending over the run: 1, 2, …
  std::string digest;                  // of all weights, layout independent (weight_publisher.h)
  std::vector<std::string> endpoints;  // one a learner rank: together they serve every slab
};

// What a batch of prompts is sampled for.
enum class LeasePurpose { kTrain, kEvaluate };

// What a lease asks for. kLogprob and kScore read samples that are there already, with weights that
// are published under a name: the log-probability of every token that a model drew (its `logp`, and
// `weight_version` the reader's), or the value at the last token (rewards["value"]).
enum class LeaseKind { kGenerate, kLogprob, kScore };

struct RolloutPrompt {
  int64_t index = 0;  // of the prompt inside the rollout
  data::Problem problem;
  std::vector<int32_t> tokens;  // as the model sees it
};

struct RolloutPlan {
  LeaseKind kind = LeaseKind::kGenerate;
  LeasePurpose purpose = LeasePurpose::kTrain;
  std::string stage;  // "reasoning_rl", or "reasoning_rl/eval/heldout"
  int64_t rollout = 0;
  uint64_t seed = 0;           // of the run; streams are (seed, stage, rollout, prompt, sample)
  int64_t weight_version = 0;  // 0: the newest published when a prompt is leased
  std::string weight_digest;   // of that version: what the journal is bound to; "" with version 0
  int64_t group_size = 1;
  kernels::SamplingParams sampling;
  int64_t max_new_tokens = 256;
  std::vector<int32_t> stop_ids;
  std::vector<std::string> stop_strings;
  bool record_routing = false;
  EnvironmentConfig environment;  // whose answers count in max_new_tokens
  std::vector<RolloutPrompt> prompts;
  // What is to be read, in place of prompts: of a key prompt and sample count, and the tokens. Its
  // temperature is sampling.temperature, its version is never 0.
  std::vector<Sample> given;
};

struct PoolStats {
  int workers = 0;
  int64_t leased = 0, reissued = 0, refused = 0, repeats = 0;
  int64_t weight_host_bytes = 0;  // that passed between host and device as workers fetched weights
  std::map<std::string, int64_t> outcomes;
};

class Coordinator {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";
    std::string secret;                            // every call carries it
    std::string tls_certificate, tls_key, tls_ca;  // files, or PEM; mutual TLS when given
    std::string worker_config;  // YAML handed to workers at registration: model, tokenizer, engine
    Device device;              // the learner's: workers on another are refused, …
    bool any_build = false;     // … as those of another build, unless this allows them
    std::string model_digest;   // of config + tokenizer: a worker that computes another is refused
    std::chrono::milliseconds lease{60'000};
    std::chrono::milliseconds heartbeat{1'000};  // a worker that misses five is taken for dead
    int64_t prompts_per_lease = 4;
    std::string journal_dir;  // RUN/journal; "" keeps nothing
    int64_t max_message_bytes = 64 << 20;
    bool colocated = false;  // learner and workers take turns, and the learner begins: TakeMemory
    int64_t vocab_size = 0;  // of the model: samples with other tokens are refused; 0: unchecked
  };
  // ConfigError when it would listen beyond loopback without TLS.
  Coordinator(FileSystem& fs, Options options);
  ~Coordinator();
  std::string address() const;  // host:port that it listens on

  // From now on leases ask for this version. At most the two newest are kept by the publishers;
  // and one that is pinned under a name, until another is or it is released.
  void Publish(const WeightVersion& version, const std::string& pinned_as = "");
  void Release(const std::string& pinned_as);

  // Starts handing out a plan; several may be under way: those that read first, then by age,
  // earlier ones first. Samples already in the
  // journal (same key, and same weight digest) are not drawn again. A plan whose digest is not that
  // of its published version can only be had from the journal: DataError when that is not complete.
  void Begin(const RolloutPlan& plan);
  struct Progress {
    int64_t done = 0, total = 0, tokens = 0;
    PoolStats pool;
    // When a sample came last, or a worker's word that it had got on with one.
    std::chrono::steady_clock::time_point last_progress;
  };
  // Waits for all samples of a plan and returns them in (prompt, sample) order. `poll` is called a
  // few times a second with progress and ends the wait by returning false (StoppedEarly).
  // TimeoutError naming the stage when no sample arrives for `stall`, counted from the call on, of
  // this plan or of one that workers are busy with before it.
  std::vector<Sample> Finish(const std::string& stage, int64_t rollout,
                             std::chrono::milliseconds stall,
                             const std::function<bool(const Progress&)>& poll);
  PoolStats stats() const;

  // Of colocated pools. The learner's turn with the memory of a device that it shares with workers:
  // there are no leases from here on, and it returns when every worker has said that it holds none
  // but its weights'. TimeoutError naming those that have not after `deadline`; the dead hold none.
  void TakeMemory(std::chrono::milliseconds deadline);
  // The workers' turn.
  void GiveMemory();
  // Tells workers to end.
  void Shutdown();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::rl
