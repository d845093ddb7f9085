// A communicator with a stream of its own, and the thread that watches what is under way on it.
//
// Communicators are non-blocking: a call may return before NCCL has put its work on the stream, and
// nothing else may be called until it has settled. So the host never hangs inside NCCL, and past
// the deadline can abort. Included only by parallel/comm/nccl*.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "parallel/comm/process_group.h"
#include "parallel/comm/stall_alarm.h"

namespace hone::parallel {

using NcclClock = std::chrono::steady_clock;

// A mark in a stream of one device.
class NcclEvent {
 public:
  explicit NcclEvent(Device device);
  ~NcclEvent();
  NcclEvent(const NcclEvent&) = delete;
  NcclEvent& operator=(const NcclEvent&) = delete;
  void Record(cudaStream_t stream);
  void Hold(cudaStream_t stream) const;  // `stream` waits for the mark
  bool Passed() const;

 private:
  Device device_;
  cudaEvent_t event_ = nullptr;
};

// One operation on a lane. What it reads and writes is kept by its Work.
struct NcclOperation {
  NcclOperation(std::string where, Device device) : place(std::move(where)), done(device) {}
  const std::string place;  // "[all_reduce] group dp, rank 1 of 4": begins messages
  std::string awaits = "a rank that did not come to it";  // whom it waits for, as far as is known
  NcclEvent done;
  NcclClock::time_point front_since;  // when nothing older was under way any more
};
using NcclOperationPtr = std::shared_ptr<NcclOperation>;

// What the watching thread looks after. Watch returns whether something is under way. It tells
// `alarm` what it is about before it calls CUDA or NCCL: while the driver waits for the GPU with
// its locks held, such a call does not return, and no deadline is seen to pass.
class NcclWatched {
 public:
  virtual ~NcclWatched() = default;
  virtual bool Watch(StallAlarm& alarm) = 0;
};

// How long an attempt of Watch may take: as long as the deadline, and time to abort.
constexpr std::chrono::milliseconds StallLimit(std::chrono::milliseconds deadline) {
  return deadline + std::chrono::seconds(15);
}

// One thread a process: calls Watch of all that is alive every 0.2 ms while one of them has
// something under way, and sleeps otherwise. One more ends the process where Watch hangs.
class NcclWatcher {
 public:
  NcclWatcher();
  ~NcclWatcher();
  void Add(std::weak_ptr<NcclWatched> watched);
  void Wake();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::list<std::weak_ptr<NcclWatched>> watched_;
  bool woken_ = false, stop_ = false;
  StallAlarm alarm_;
  std::thread thread_;
};

// Thread safe; but between Begin and the Settled that returns true only one thread may use it.
class NcclLane : public NcclWatched {
 public:
  NcclLane(Device device, std::chrono::milliseconds deadline);
  ~NcclLane() override;

  // Begins to form the communicator with the ranks that hold the same id.
  void BeginInit(const ncclUniqueId& id, int size, int rank, const std::string& place);
  // Begins `calls`; they must settle before the next.
  void Begin(const std::string& place,
             const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& calls);
  bool Settled(const std::string& place);  // throws when it failed
  void Settle(const std::string& place);   // waits; aborts past the deadline
  // Marks the end of what has settled and watches for it.
  void Finish(const NcclOperationPtr& operation);

  cudaStream_t stream() const { return stream_; }
  // Throws the error that ended this lane, if one has.
  void CheckAlive(const std::string& place);
  bool Watch(StallAlarm& alarm) override;

 private:
  void Fail(const std::string& message, bool late);  // mutex_ is held
  void CheckResult(ncclResult_t result, const std::string& place);

  const Device device_;
  const std::chrono::milliseconds deadline_;
  std::shared_ptr<Stream> own_stream_;
  cudaStream_t stream_;
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
  std::deque<NcclOperationPtr> under_way_;
  std::string failure_;
  bool late_ = false;
};

}  // namespace hone::parallel
