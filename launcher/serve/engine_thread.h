// The one thread that owns the inference engine of `hone serve`, and the channels through which
// requests wait for what it draws.
//
// All requests share the engine's batch. A channel only ever grows, so a reader that is slow, or
// gone, holds nothing up.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "rl/loaded_model.h"
#include "rl/rollout/inference_engine.h"

namespace hone::launcher {

// What has been drawn for one request of `n` choices. Thread safe.
class Channel {
 public:
  using Token = rl::DrawnToken;
  struct Choice {
    std::vector<Token> tokens;
    bool done = false;
    rl::FinishReason finish = rl::FinishReason::kLength;
  };
  explicit Channel(int n) : choices_(n) {}

  // Waits until something is new since the last call of this function, or `patience` is over.
  // Returns what is new: the tokens since then, and whether the choice is done.
  std::vector<Choice> Take(std::chrono::milliseconds patience);
  // Waits for what Take would give, or until `patience` is over: false then.
  bool Wait(std::chrono::milliseconds patience);
  // Empty unless the engine failed, or could not take the request.
  std::string error();
  // Of the weights that draw it; known with its first token.
  std::string fingerprint();

 private:
  friend class EngineThread;
  void Begin(const std::string& fingerprint);
  void Add(size_t choice, Token token);
  void Finish(size_t choice, rl::FinishReason reason);
  void Fail(const std::string& error);

  std::mutex mutex_;
  std::condition_variable changed_;
  bool fresh_ = false;
  std::vector<Choice> choices_;
  std::string error_, fingerprint_;
};

class EngineThread {
 public:
  // `model` outlives this.
  EngineThread(rl::LoadedModel& model, const rl::EngineConfig& config, int64_t max_waiting);
  ~EngineThread();  // what is under way ends unfinished

  // One choice a stream; id and group are set here. nullptr when more than `max_waiting` sequences
  // are under way already.
  std::shared_ptr<Channel> Submit(const rl::GenerateRequest& request,
                                  const std::vector<RandomStream>& streams);
  // Nobody reads it any more: its choices that are not done leave the engine.
  void Cancel(const std::shared_ptr<Channel>& channel);
  int64_t under_way();                      // sequences submitted and not ended
  int64_t cancelled();                      // sequences that left before their end, since the start
  int64_t drawn() const { return drawn_; }  // tokens, since the start

  // Runs `replace`, which changes the model's weights, between requests: those under way end with
  // the old weights, those that come meanwhile wait. Returns when it is done, or false when the
  // thread ends before; throws what `replace` throws. Not from two threads at once.
  bool Replace(std::function<void()> replace, const std::string& fingerprint);

 private:
  struct Place {
    std::shared_ptr<Channel> channel;
    size_t choice;
  };
  void Run();
  void TakeOrders(std::vector<rl::GenerateRequest>* added, std::vector<uint64_t>* cancelled);
  void Add(rl::GenerateRequest request);
  void Step();
  void ReplaceIfIdle();
  Place PlaceOf(uint64_t id, bool remove);
  void FailAll(const std::string& error);

  rl::InferenceEngine engine_;  // of the thread only
  const int64_t max_waiting_;
  std::atomic<int64_t> drawn_ = 0;
  std::mutex mutex_;
  std::condition_variable ordered_, replaced_;
  bool stop_ = false;
  std::function<void()> replace_;  // set: new requests wait
  std::exception_ptr replace_error_;
  std::string fingerprint_, next_fingerprint_;
  int64_t cancelled_count_ = 0;
  uint64_t next_id_ = 1;
  std::vector<rl::GenerateRequest> added_;
  std::vector<uint64_t> cancelled_;
  std::map<uint64_t, Place> places_;
  std::thread thread_;
};

}  // namespace hone::launcher
