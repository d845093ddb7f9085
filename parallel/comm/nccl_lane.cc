#include "parallel/comm/nccl_lane.h"

#include <utility>

#include "parallel/comm/nccl_library.h"
#include "runtime/cuda_check.h"
#include "runtime/error.h"
#include "runtime/library_memory.h"

namespace hone::parallel {
namespace {

using runtime::CheckCuda;
constexpr std::chrono::microseconds kGlance{200};

void Use(Device device) {
  CheckCuda(cudaSetDevice(device.index), "nccl", "cudaSetDevice", device.index);
}

double Seconds(std::chrono::milliseconds time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

NcclEvent::NcclEvent(Device device) : device_(device) {
  Use(device);
  CheckCuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "nccl", "cudaEventCreate",
            device.index);
}
NcclEvent::~NcclEvent() {
  cudaSetDevice(device_.index);
  cudaEventDestroy(event_);
}
// The watching thread has no device, and would be given the first one.
void NcclEvent::Record(cudaStream_t stream) {
  Use(device_);
  CheckCuda(cudaEventRecord(event_, stream), "nccl", "cudaEventRecord", device_.index);
}
void NcclEvent::Hold(cudaStream_t stream) const {
  Use(device_);
  CheckCuda(cudaStreamWaitEvent(stream, event_, 0), "nccl", "cudaStreamWaitEvent", device_.index);
}
bool NcclEvent::Passed() const {
  Use(device_);
  cudaError_t status = cudaEventQuery(event_);
  if (status != cudaErrorNotReady) CheckCuda(status, "nccl", "cudaEventQuery", device_.index);
  return status == cudaSuccess;
}

NcclWatcher::NcclWatcher() : thread_([this] { Run(); }) {}

NcclWatcher::~NcclWatcher() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void NcclWatcher::Add(std::weak_ptr<NcclWatched> watched) {
  std::lock_guard lock(mutex_);
  watched_.push_back(std::move(watched));
}

void NcclWatcher::Wake() {
  std::lock_guard lock(mutex_);
  woken_ = true;
  wake_.notify_all();
}

void NcclWatcher::Run() {
  std::unique_lock lock(mutex_);
  bool busy = false;
  while (!stop_) {
    if (busy) {
      wake_.wait_for(lock, kGlance, [this] { return stop_; });
    } else {
      wake_.wait(lock, [this] { return stop_ || woken_; });
    }
    woken_ = false;
    std::vector<std::shared_ptr<NcclWatched>> alive;
    for (auto it = watched_.begin(); it != watched_.end();) {
      if (auto watched = it->lock()) {
        alive.push_back(std::move(watched));
        ++it;
      } else {
        it = watched_.erase(it);
      }
    }
    lock.unlock();
    busy = false;
    for (const auto& watched : alive) busy |= watched->Watch(alarm_);
    alive.clear();
    lock.lock();
  }
}

NcclLane::NcclLane(Device device, std::chrono::milliseconds deadline)
    : device_(device),
      deadline_(deadline),
      own_stream_(runtime::MakeStream(device)),
      stream_(static_cast<cudaStream_t>(own_stream_->handle())) {}

// In order when nothing failed; a rank that is gone must not make the others hang.
NcclLane::~NcclLane() {
  if (comm_ == nullptr) return;
  cudaSetDevice(device_.index);
  ncclResult_t state = Nccl().ncclCommFinalize(comm_);
  auto until = NcclClock::now() + std::chrono::seconds(10);
  while (state == ncclInProgress && NcclClock::now() < until) {
    std::this_thread::sleep_for(kGlance);
    if (Nccl().ncclCommGetAsyncError(comm_, &state) != ncclSuccess) break;
  }
  if (state == ncclSuccess) {
    Nccl().ncclCommDestroy(comm_);
  } else {
    Nccl().ncclCommAbort(comm_);
  }
}

void NcclLane::Fail(const std::string& message, bool late) {
  if (!failure_.empty()) return;
  failure_ = message;
  late_ = late;
  if (comm_) Nccl().ncclCommAbort(comm_);
  comm_ = nullptr;
  under_way_.clear();
}

void NcclLane::CheckAlive(const std::string& place) {
  std::lock_guard lock(mutex_);
  if (failure_.empty()) return;
  std::string message = failure_.starts_with(place)
                            ? failure_
                            : fmt::format("{}: not possible after {}", place, failure_);
  if (late_) throw TimeoutError(message);
  throw CommError(message);
}

void NcclLane::CheckResult(ncclResult_t result, const std::string& place) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* details = comm_ ? Nccl().ncclGetLastError(comm_) : "";
  Fail(fmt::format("{}: NCCL: {} {}", place, Nccl().ncclGetErrorString(result),
                   details ? details : ""),
       false);
}

void NcclLane::BeginInit(const ncclUniqueId& id, int size, int rank, const std::string& place) {
  {
    std::lock_guard lock(mutex_);
    runtime::MakeRoomForLibraries(device_.index);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    CheckResult(Nccl().ncclCommInitRankConfig(&comm_, size, id, rank, &config), place);
  }
  CheckAlive(place);
}

void NcclLane::Begin(const std::string& place,
                     const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& calls) {
  CheckAlive(place);
  {
    std::lock_guard lock(mutex_);
    Use(device_);
    ncclResult_t result = comm_ ? calls(comm_, stream_) : ncclSuccess;
    CheckResult(result, place);
  }
  CheckAlive(place);
}

bool NcclLane::Settled(const std::string& place) {
  bool settled = false;
  {
    std::lock_guard lock(mutex_);
    if (comm_) {
      ncclResult_t state = ncclSuccess;
      CheckResult(Nccl().ncclCommGetAsyncError(comm_, &state), place);
      CheckResult(state, place);
      settled = state == ncclSuccess;
    }
  }
  CheckAlive(place);
  return settled;
}

void NcclLane::Settle(const std::string& place) {
  auto until = NcclClock::now() + deadline_;
  for (int glances = 0; !Settled(place); ++glances) {
    if (NcclClock::now() > until) {
      std::lock_guard lock(mutex_);
      Fail(fmt::format("{}: waited {:.1f} s for the ranks to connect", place, Seconds(deadline_)),
           true);
    }
    if (glances > 100) std::this_thread::sleep_for(kGlance);
  }
}

void NcclLane::Finish(const NcclOperationPtr& operation) {
  std::lock_guard lock(mutex_);
  operation->done.Record(stream_);
  operation->front_since = NcclClock::now();
  if (failure_.empty()) under_way_.push_back(operation);
}

bool NcclLane::Watch(StallAlarm& alarm) {
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return true;
  if (under_way_.empty()) return false;
  const StallAlarm::Attempt attempt(alarm, under_way_.front()->place, StallLimit(deadline_));
  try {
    while (!under_way_.empty() && under_way_.front()->done.Passed()) {
      under_way_.pop_front();
      if (!under_way_.empty()) under_way_.front()->front_since = NcclClock::now();
    }
    if (under_way_.empty()) return false;
  } catch (const Error& error) {
    Fail(fmt::format("{}: {}", under_way_.front()->place, error.what()), false);
    return false;
  }
  const std::string place = under_way_.front()->place, awaits = under_way_.front()->awaits;
  ncclResult_t state = ncclSuccess;
  CheckResult(Nccl().ncclCommGetAsyncError(comm_, &state), place);
  if (comm_) CheckResult(state, place);
  if (comm_ && NcclClock::now() - under_way_.front()->front_since > deadline_) {
    Fail(fmt::format("{}: waited {:.1f} s for {}", place, Seconds(deadline_), awaits), true);
  }
  return !under_way_.empty();
}

}  // namespace hone::parallel
