#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "runtime/cuda_check.h"
#include "runtime/replay.h"
#include "runtime/step_recorder.h"

namespace hone::runtime {
namespace {

thread_local StepRecorder* current = nullptr;
constexpr int64_t kUploadAlignment = 256;

// The arenas there are, until nothing of theirs is in use: tensors die anywhere.
struct Arenas {
  std::mutex mutex;
  std::vector<std::shared_ptr<DeviceArena>> all;
};

Arenas& arenas() {
  static Arenas* a = new Arenas;  // never destroyed: tensors may outlive statics
  return *a;
}

cudaStream_t Handle(Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

}  // namespace

DeviceArena::DeviceArena(std::shared_ptr<Allocator> allocator, int64_t bytes)
    : allocator_(std::move(allocator)),
      base_(static_cast<char*>(allocator_->Allocate(bytes, MemoryCategory::kActivations))),
      layout_(bytes) {}

DeviceArena::~DeviceArena() {
  allocator_->Free(base_, layout_.capacity(), MemoryCategory::kActivations);
}

std::shared_ptr<DeviceArena> DeviceArena::Make(std::shared_ptr<Allocator> allocator,
                                               int64_t bytes) {
  auto arena = std::make_shared<DeviceArena>(std::move(allocator), bytes);
  std::lock_guard lock(arenas().mutex);
  arenas().all.push_back(arena);
  return arena;
}

void DeviceArena::Retire(std::shared_ptr<DeviceArena> arena) {
  if (!arena) return;
  std::lock_guard lock(arenas().mutex);
  arena->retired_ = true;
  // With blocks in use it goes when the last is given back.
  if (arena->layout_.empty()) std::erase(arenas().all, arena);
}

void* DeviceArena::Take(int64_t bytes) {
  std::lock_guard lock(arenas().mutex);
  const int64_t offset = layout_.Take(bytes);
  return offset < 0 ? nullptr : base_ + offset;
}

bool DeviceArena::GiveBack(void* ptr) {
  std::shared_ptr<DeviceArena> done;  // freed behind the lock
  std::lock_guard lock(arenas().mutex);
  for (auto& arena : arenas().all) {
    const int64_t offset = static_cast<char*>(ptr) - arena->base_;
    if (offset < 0 || offset >= arena->layout_.capacity()) continue;
    arena->layout_.Give(offset);
    if (arena->retired_ && arena->layout_.empty()) {
      done = std::move(arena);
      std::erase(arenas().all, nullptr);
    }
    return true;
  }
  return false;
}

StepRecorder::StepRecorder(Mode mode, Allocator& allocator, RecordedStep& step, DeviceArena* arena)
    : mode_(mode),
      device_(allocator.device().index),
      stream_(*allocator.stream()),
      step_(step),
      arena_(arena) {
  if (arena) trial_ = arena->layout().WithoutLimit();
  if (mode == Mode::kCapture) step_.segments.clear();
  current = this;
}

StepRecorder::~StepRecorder() {
  current = nullptr;
  if (!finished_ && mode_ != Mode::kTrial) Abandon();
  for (void* ptr : kept_) cudaFreeAsync(ptr, Handle(stream_));
}

StepRecorder* StepRecorder::Of(const Stream& stream) {
  return current && &current->stream_ == &stream ? current : nullptr;
}

StepRecorder* StepRecorder::OfThread() { return current; }

bool StepRecorder::IssueBytes(std::span<const std::byte> description) {
  if (!recording_) return true;
  if (mode_ == Mode::kCapture) {
    if (issued_ == 0) BeginCapture();
    std::vector<std::byte>& pieces = step_.segments.back().pieces;
    pieces.insert(pieces.end(), description.begin(), description.end());
  } else if (mode_ == Mode::kReplay) {
    if (segment_ == step_.segments.size()) throw Differs();
    const std::vector<std::byte>& pieces = step_.segments[segment_].pieces;
    if (description.size() > pieces.size() - issued_ ||
        std::memcmp(description.data(), pieces.data() + issued_, description.size()) != 0) {
      throw Differs();
    }
  }
  issued_ += description.size();
  return mode_ != Mode::kReplay;
}

void StepRecorder::BeginCapture() {
  CheckCuda(cudaStreamBeginCapture(Handle(stream_), cudaStreamCaptureModeThreadLocal), "replay",
            "cudaStreamBeginCapture", device_);
  step_.segments.emplace_back();
}

void StepRecorder::EndCapture() {
  cudaGraph_t graph = nullptr;
  const cudaError_t status = cudaStreamEndCapture(Handle(stream_), &graph);
  const std::shared_ptr<void> owner(graph, [](void* g) {
    if (g) cudaGraphDestroy(static_cast<cudaGraph_t>(g));
  });
  CheckCuda(status, "replay", "cudaStreamEndCapture", device_);
  cudaGraphExec_t started = nullptr;
  CheckCuda(cudaGraphInstantiate(&started, graph, 0), "replay", "cudaGraphInstantiate", device_);
  step_.segments.back().graph = std::shared_ptr<void>(
      started, [](void* g) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(g)); });
}

void StepRecorder::Cut() {
  const size_t issued = std::exchange(issued_, 0);
  if (issued == 0) return;
  if (mode_ == Mode::kCapture) EndCapture();
  if (mode_ == Mode::kReplay && issued != step_.segments[segment_].pieces.size()) throw Differs();
  if (mode_ != Mode::kTrial) {
    auto graph = static_cast<cudaGraphExec_t>(step_.segments[segment_].graph.get());
    CheckCuda(cudaGraphLaunch(graph, Handle(stream_)), "replay", "cudaGraphLaunch", device_);
  }
  ++segment_;
}

bool StepRecorder::Pause() {
  if (!recording_) return false;
  Cut();
  recording_ = false;
  ++apart_;
  return true;
}

void StepRecorder::Finish() {
  Cut();
  if (mode_ == Mode::kReplay && segment_ != step_.segments.size()) throw Differs();
  finished_ = true;
}

// What was started reads its graphs and uploads until it is done.
void StepRecorder::Abandon() {
  if (mode_ == Mode::kCapture && issued_ > 0) {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(Handle(stream_), &graph);
    if (graph) cudaGraphDestroy(graph);
  }
  cudaStreamSynchronize(Handle(stream_));
}

const void* StepRecorder::Upload(void* dst, const void* src, int64_t bytes) {
  if (!recording_) return src;
  const int64_t at = uploaded_;
  uploaded_ += (bytes + kUploadAlignment - 1) / kUploadAlignment * kUploadAlignment;
  if (mode_ == Mode::kTrial) {
    Issue(Piece::kUpload);
    return src;
  }
  if (uploaded_ > step_.upload_bytes) throw Differs();
  void* kept = static_cast<char*>(step_.uploads.get()) + at;
  const bool issue = Issue(Piece::kUpload, dst, kept, bytes);
  std::memcpy(kept, src, static_cast<size_t>(bytes));
  return issue ? kept : nullptr;
}

void* StepRecorder::Allocate(int64_t bytes) {
  if (mode_ == Mode::kTrial) return nullptr;
  void* ptr = arena_->Take(bytes);
  if (!ptr && recording_) throw Differs();
  return ptr;
}

void StepRecorder::Measure(void* ptr, int64_t bytes) {
  if (mode_ == Mode::kTrial) trial_places_[ptr] = trial_.Take(bytes);
}

bool StepRecorder::Keep(void* ptr) {
  if (mode_ == Mode::kTrial) {
    if (auto found = trial_places_.find(ptr); found != trial_places_.end()) {
      trial_.Give(found->second);
      trial_places_.erase(found);
    }
    return false;
  }
  if (!recording_) return false;  // what may read it is on the stream already
  kept_.push_back(ptr);
  return true;
}

Unrecorded::Unrecorded(Stream& stream) : recorder_(StepRecorder::Of(stream)) {
  if (recorder_ && !recorder_->Pause()) recorder_ = nullptr;
}

Unrecorded::~Unrecorded() {
  if (recorder_) recorder_->Resume();
}

}  // namespace hone::runtime
