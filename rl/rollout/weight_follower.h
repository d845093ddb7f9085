// Reads the weights of a run while it trains, and disturbs nothing: it takes no leases and is not
// counted as a worker.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "rl/rollout/coordinator.h"
#include "runtime/slab.h"

namespace hone::rl {

class WeightFollower {
 public:
  // As a worker finds its coordinator: an address, or a file that holds it, which may change.
  struct Options {
    std::string coordinator, coordinator_file;
    std::string secret_file;
    std::string tls_certificate, tls_key, tls_ca;
  };
  explicit WeightFollower(Options options);
  ~WeightFollower();

  struct News {
    std::string worker_config;  // worker_config.h: model, tokenizer, dtype
    std::string model_digest;
    WeightVersion newest;  // version 0: none is published yet
  };
  // What the run says now; nullopt where nobody answers: it has not begun, is between two starts,
  // or has ended. ConfigError when it refuses the secret.
  std::optional<News> Ask();
  // Fetches a version into `target` and checks its digest, as WeightSync. CommError: also when it
  // is gone meanwhile.
  void Fetch(const WeightVersion& version, const SlabIndex& target);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hone::rl
