// Helper processes that run verifiers beside sampling: killable, with a deadline for each request.
//
// Helpers are this program started again by exec (`hone verify-helper`) before any MPI, gRPC or
// CUDA initialisation, talking over pipes; they hold no secret. One that passes its deadline or
// dies is killed and replaced, and its request gets kTimeout or kCrashed.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "rl/reward/verifier.h"

namespace hone::rl {

class VerifierPool {
 public:
  struct Options {
    int helpers = 1;
    std::chrono::milliseconds deadline{5000};
    std::string program;  // path of hone; "" = /proc/self/exe
  };
  explicit VerifierPool(Options options);
  ~VerifierPool();

  // Queues a request; never blocks. `id` is the caller's.
  void Submit(uint64_t id, const RewardRequest& request);
  struct Scored {
    uint64_t id;
    RewardReply reply;
  };
  // What has been scored since; waits up to `wait` for the first.
  std::vector<Scored> Poll(std::chrono::milliseconds wait);
  int64_t pending() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The helper's loop: reads requests from stdin, writes replies to stdout, ends at end of file.
int VerifyHelperMain();

}  // namespace hone::rl
