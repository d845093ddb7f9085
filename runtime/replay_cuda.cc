// Replay by CUDA graphs.
#include <bit>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>

#include "runtime/cuda_check.h"
#include "runtime/error.h"
#include "runtime/library_memory.h"
#include "runtime/replay.h"
#include "runtime/step_recorder.h"

namespace hone::runtime {
namespace {

// A step that differed this often without being replayed in between is not recorded any more.
constexpr int kMostTries = 8;

class CudaReplay : public Replay {
 public:
  CudaReplay(std::shared_ptr<Allocator> allocator, int64_t most_graphs)
      : allocator_(std::move(allocator)),
        device_(allocator_->device().index),
        most_graphs_(most_graphs) {}
  ~CudaReplay() override {
    for (auto& [key, step] : steps_) Forget(step);
    DeviceArena::Retire(std::move(arena_));
  }

  void Run(int64_t key, const std::function<void()>& work) override {
    Step& step = steps_[key];
    step.last_run = ++runs_;
    switch (step.state) {
      case State::kNew:
        return Try(step, work);
      case State::kMeasured:
        return Capture(step, work);
      case State::kRecorded:
        return Repeat(step, work);
      case State::kGivenUp:
        return work();
    }
  }

  // At most a quarter more: 1 to 8, 10, 12, 14, 16, 20, …
  int64_t PaddedRows(int64_t rows) const override {
    if (hopeless_ || rows <= 4) return rows;
    auto quarter = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows)) / 4);
    return (rows + quarter - 1) / quarter * quarter;
  }

  ReplayStats stats() const override { return stats_; }

 private:
  enum class State { kNew, kMeasured, kRecorded, kGivenUp };
  struct Step : RecordedStep {
    State state = State::kNew;
    int tries = 0;
    int64_t arena_bytes = 0, graphs = 0;  // as measured
    int64_t last_run = 0;
    cudaEvent_t done = nullptr;  // behind the last start of its graphs
  };
  using Mode = StepRecorder::Mode;
  using Work = std::function<void()>;

  void Checked(cudaError_t status, const char* call) const {
    CheckCuda(status, "replay", call, device_);
  }
  cudaStream_t handle() { return static_cast<cudaStream_t>(allocator_->stream()->handle()); }

  void Try(Step& step, const Work& work);
  void Capture(Step& step, const Work& work);
  void Repeat(Step& step, const Work& work);
  void ReplaceArena(int64_t bytes);
  void MakeRoom(const Step& step);
  void MarkDone(Step& step);
  void Forget(Step& step);
  void GiveUp(Step& step);

  std::shared_ptr<Allocator> allocator_;
  int device_;
  int64_t most_graphs_;
  std::shared_ptr<DeviceArena> arena_;
  std::map<int64_t, Step> steps_;
  int64_t runs_ = 0;
  ReplayStats stats_;
  bool hopeless_ = false;  // the work waits too often
};

// Runs a step piece by piece and measures what it would take to record it.
void CudaReplay::Try(Step& step, const Work& work) {
  if (++step.tries > kMostTries) {
    GiveUp(step);
    return work();
  }
  StepRecorder recorder(Mode::kTrial, *allocator_, step, arena_.get());
  work();
  recorder.Finish();
  step.graphs = recorder.segments();
  if (step.graphs > most_graphs_) {
    hopeless_ = true;
    return GiveUp(step);
  }
  step.upload_bytes = recorder.upload_bytes();
  step.arena_bytes = recorder.arena_bytes();
  step.state = State::kMeasured;
}

void CudaReplay::Capture(Step& step, const Work& work) {
  MakeRoom(step);
  try {
    if (!arena_ || arena_->layout().capacity() < step.arena_bytes) ReplaceArena(step.arena_bytes);
    MakeRoomForLibraries(device_);
    step.uploads = MakePinned(step.upload_bytes);
    StepRecorder recorder(Mode::kCapture, *allocator_, step, arena_.get());
    work();
    recorder.Finish();
    MarkDone(step);
    step.state = State::kRecorded;
    ++stats_.recorded;
  } catch (const StepRecorder::Differs&) {  // it is not what was measured
    Forget(step);
    Try(step, work);
  } catch (const DeviceError& error) {
    std::fprintf(stderr, "hone: a step is not replayed, it cannot be recorded: %s\n", error.what());
    GiveUp(step);
    work();
  }
}

void CudaReplay::Repeat(Step& step, const Work& work) {
  // What the last start uploads is read by then, and may be written again.
  Checked(cudaEventSynchronize(step.done), "cudaEventSynchronize");
  try {
    StepRecorder recorder(Mode::kReplay, *allocator_, step, arena_.get());
    work();
    recorder.Finish();
    MarkDone(step);
    step.tries = 0;
    ++stats_.replayed;
    stats_.segments += recorder.segments();
    stats_.apart += recorder.apart();
  } catch (const StepRecorder::Differs&) {
    Forget(step);
    Try(step, work);
  }
}

// Graphs in the old block would find other addresses, or none, and are recorded anew.
void CudaReplay::ReplaceArena(int64_t bytes) {
  for (auto& [key, step] : steps_) {
    if (step.state == State::kRecorded) Forget(step);
  }
  DeviceArena::Retire(std::move(arena_));
  arena_ = DeviceArena::Make(allocator_, bytes);
}

void CudaReplay::MakeRoom(const Step& step) {
  int64_t graphs = step.graphs;
  std::map<int64_t, Step*> by_age;
  for (auto& [key, other] : steps_) {
    if (other.state != State::kRecorded) continue;
    graphs += static_cast<int64_t>(other.segments.size());
    by_age[other.last_run] = &other;
  }
  for (auto oldest = by_age.begin(); graphs > most_graphs_; ++oldest) {
    graphs -= static_cast<int64_t>(oldest->second->segments.size());
    Forget(*oldest->second);
  }
}

void CudaReplay::MarkDone(Step& step) {
  if (!step.done) {
    Checked(cudaEventCreateWithFlags(&step.done, cudaEventDisableTiming), "cudaEventCreate");
  }
  Checked(cudaEventRecord(step.done, handle()), "cudaEventRecord");
}

void CudaReplay::Forget(Step& step) {
  if (step.done) {
    cudaEventSynchronize(step.done);
    cudaEventDestroy(step.done);
  }
  step.done = nullptr;
  step.segments.clear();
  step.uploads.reset();
  step.state = State::kNew;
}

void CudaReplay::GiveUp(Step& step) {
  Forget(step);
  step.state = State::kGivenUp;
}

}  // namespace

std::unique_ptr<Replay> MakeCudaReplay(const std::shared_ptr<Allocator>& allocator,
                                       int64_t most_graphs) {
  return std::make_unique<CudaReplay>(allocator, most_graphs);
}

}  // namespace hone::runtime
