// Helper processes that run verifiers beside sampling: killable, with a deadline for each request.
//
// Helpers are this program started again by exec (`hone verify-helper`) before any MPI, gRPC or
// CUDA initialisation, talking over a socket pair; they hold no secret: the environment is cut to a
// list of harmless names and every other descriptor is closed. One that passes its deadline or dies
// is killed and replaced, and its request gets kTimeout or kCrashed.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "rl/reward/verifier.h"

namespace hone::rl {

// Thread-safe. All helpers run when the constructor returns; none is left when the destructor does.
class VerifierPool {
 public:
  struct Options {
    int helpers = 1;
    // Of one request, from when a helper takes it up.
    std::chrono::milliseconds deadline{5000};
    std::string program{};  // path of hone; "" = /proc/self/exe
  };
  explicit VerifierPool(Options options);  // IoError when a helper cannot be started
  ~VerifierPool();

  // Queues a request; never blocks. `id` is the caller's.
  void Submit(uint64_t id, const RewardRequest& request);
  struct Scored {
    uint64_t id;
    RewardReply reply;
  };
  // What has been scored since; waits up to `wait` for the first.
  std::vector<Scored> Poll(std::chrono::milliseconds wait);
  // Requests submitted and not yet handed out by Poll.
  int64_t pending() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The helper's loop: reads requests from stdin, writes replies to stdout, ends at end of file (0)
// or at a malformed request (1). A hone::Error of `score` becomes kRefused with its message; any
// other exception ends the process, which its pool reports as kCrashed.
int VerifyHelperLoop(const std::function<RewardReply(const RewardRequest&)>& score);
// The same with ScoreCompletion, and AnswerCall for requests that name an environment.
int VerifyHelperMain();

}  // namespace hone::rl
