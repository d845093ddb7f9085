// Ends the process when a call does not return that nothing can be got out of.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace hone::parallel {

// A thread that makes no call but the clock's. Another one says what it is about to do; where that
// takes too long, the thread says so on stderr and ends the process with 1, without destructors,
// which would wait too.
class StallAlarm {
 public:
  using Milliseconds = std::chrono::milliseconds;

  explicit StallAlarm(Milliseconds glance = std::chrono::seconds(1));
  ~StallAlarm();

  // One at a time. `what` begins the message; `limit` is how long it may live.
  class Attempt {
   public:
    Attempt(StallAlarm& alarm, std::string what, Milliseconds limit);
    ~Attempt();
    Attempt(const Attempt&) = delete;
    Attempt& operator=(const Attempt&) = delete;

   private:
    friend class StallAlarm;
    StallAlarm& alarm_;
    const std::string what_;
    const Milliseconds limit_;
    const std::chrono::steady_clock::time_point begin_;
  };

 private:
  void Run(Milliseconds glance);

  std::mutex mutex_;
  std::condition_variable wake_;
  const Attempt* current_ = nullptr;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace hone::parallel
