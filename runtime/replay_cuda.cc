// Replay by CUDA graphs.
#include <bit>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>

#include "runtime/cuda_check.h"
#include "runtime/error.h"
#include "runtime/replay.h"
#include "runtime/step_recorder.h"

namespace hone::runtime {
namespace {

// A step that differed this often without being replayed in between is not recorded any more.
constexpr int kMostTries = 8;

class CudaReplay : public Replay {
 public:
  explicit CudaReplay(std::shared_ptr<Allocator> allocator)
      : allocator_(std::move(allocator)), device_(allocator_->device().index) {}
  ~CudaReplay() override {
    for (auto& [key, step] : steps_) Forget(step);
    DeviceArena::Retire(std::move(arena_));
  }

  void Run(int64_t key, const std::function<void()>& work) override {
    Step& step = steps_[key];
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
    int64_t arena_bytes = 0;
    cudaGraphExec_t graph = nullptr;
    cudaEvent_t done = nullptr;  // behind the last start of `graph`
  };
  using Mode = StepRecorder::Mode;
  using Work = std::function<void()>;

  void Checked(cudaError_t status, const char* call) const {
    CheckCuda(status, "replay", call, device_);
  }
  Stream& stream() { return *allocator_->stream(); }
  cudaStream_t handle() { return static_cast<cudaStream_t>(stream().handle()); }

  void Try(Step& step, const Work& work);
  void Capture(Step& step, const Work& work);
  bool Record(Step& step, const Work& work);
  void Repeat(Step& step, const Work& work);
  void Start(Step& step);
  void Forget(Step& step);
  void GiveUp(Step& step);

  std::shared_ptr<Allocator> allocator_;
  int device_;
  std::shared_ptr<DeviceArena> arena_;
  std::map<int64_t, Step> steps_;
  ReplayStats stats_;
  bool hopeless_ = false;  // the work waits for the device
};

// Runs a step piece by piece and measures what it would take to record it.
void CudaReplay::Try(Step& step, const Work& work) {
  if (++step.tries > kMostTries) {
    GiveUp(step);
    return work();
  }
  StepRecorder recorder(Mode::kTrial, stream(), step, arena_.get());
  work();
  if (recorder.waits()) {
    hopeless_ = true;
    return GiveUp(step);
  }
  step.upload_bytes = recorder.upload_bytes();
  step.arena_bytes = recorder.arena_bytes();
  step.state = State::kMeasured;
}

void CudaReplay::Capture(Step& step, const Work& work) {
  if (!arena_ || arena_->layout().capacity() < step.arena_bytes) {
    // Graphs in the old block find other addresses and are recorded anew.
    DeviceArena::Retire(std::move(arena_));
    arena_ = DeviceArena::Make(allocator_, step.arena_bytes);
  }
  step.uploads = MakePinned(step.upload_bytes);
  bool same = false;
  try {
    same = Record(step, work);
  } catch (const DeviceError& error) {
    std::fprintf(stderr, "hone: a step is not replayed, the driver refuses to record it: %s\n",
                 error.what());
    GiveUp(step);
    return work();
  }
  if (!same) {
    step.state = State::kNew;
    return Try(step, work);
  }
  step.state = State::kRecorded;
  ++stats_.recorded;
  Start(step);
}

// False where the step is not what was measured.
bool CudaReplay::Record(Step& step, const Work& work) {
  StepRecorder recorder(Mode::kCapture, stream(), step, arena_.get());
  cudaGraph_t graph = nullptr;
  auto end = [&] {
    cudaError_t status = cudaStreamEndCapture(handle(), &graph);
    return std::pair(status, std::shared_ptr<void>(graph, [](void* g) {
                       if (g) cudaGraphDestroy(static_cast<cudaGraph_t>(g));
                     }));
  };
  Checked(cudaStreamBeginCapture(handle(), cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
  try {
    work();
  } catch (const StepRecorder::Differs&) {
    end();
    return false;
  } catch (...) {
    end();
    throw;
  }
  auto [status, owner] = end();
  Checked(status, "cudaStreamEndCapture");
  Checked(cudaGraphInstantiate(&step.graph, graph, 0), "cudaGraphInstantiate");
  return true;
}

void CudaReplay::Repeat(Step& step, const Work& work) {
  // What the last start uploads is read by then, and may be written again.
  Checked(cudaEventSynchronize(step.done), "cudaEventSynchronize");
  try {
    StepRecorder recorder(Mode::kReplay, stream(), step, arena_.get());
    work();
    recorder.CheckAtEnd();
    Start(step);
    step.tries = 0;
    ++stats_.replayed;
  } catch (const StepRecorder::Differs&) {
    Forget(step);
    Try(step, work);
  }
}

void CudaReplay::Start(Step& step) {
  if (!step.done) {
    Checked(cudaEventCreateWithFlags(&step.done, cudaEventDisableTiming), "cudaEventCreate");
  }
  Checked(cudaGraphLaunch(step.graph, handle()), "cudaGraphLaunch");
  Checked(cudaEventRecord(step.done, handle()), "cudaEventRecord");
}

void CudaReplay::Forget(Step& step) {
  if (step.done) cudaEventSynchronize(step.done);
  if (step.graph) cudaGraphExecDestroy(step.graph);
  if (step.done) cudaEventDestroy(step.done);
  step.graph = nullptr;
  step.done = nullptr;
  step.uploads.reset();
  step.state = State::kNew;
}

void CudaReplay::GiveUp(Step& step) {
  Forget(step);
  step.state = State::kGivenUp;
}

}  // namespace

std::unique_ptr<Replay> MakeCudaReplay(const std::shared_ptr<Allocator>& allocator) {
  return std::make_unique<CudaReplay>(allocator);
}

}  // namespace hone::runtime
