#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>
#include <utility>

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

StepRecorder::StepRecorder(Mode mode, Stream& stream, RecordedStep& step, DeviceArena* arena)
    : mode_(mode), stream_(stream), step_(step), arena_(arena) {
  if (arena) trial_ = arena->layout().WithoutLimit();
  if (mode == Mode::kCapture) step_.pieces.clear();
  current = this;
}

StepRecorder::~StepRecorder() {
  current = nullptr;
  for (void* ptr : kept_) cudaFreeAsync(ptr, static_cast<cudaStream_t>(stream_.handle()));
}

StepRecorder* StepRecorder::Of(const Stream& stream) {
  return current && &current->stream_ == &stream ? current : nullptr;
}

StepRecorder* StepRecorder::OfThread() { return current; }

bool StepRecorder::IssueBytes(std::span<const std::byte> description) {
  if (mode_ == Mode::kCapture) {
    step_.pieces.insert(step_.pieces.end(), description.begin(), description.end());
  }
  if (mode_ != Mode::kReplay) return true;
  const size_t left = step_.pieces.size() - next_piece_;
  if (description.size() > left ||
      std::memcmp(description.data(), step_.pieces.data() + next_piece_, description.size()) != 0) {
    throw Differs();
  }
  next_piece_ += description.size();
  return false;
}

const void* StepRecorder::Upload(void* dst, const void* src, int64_t bytes) {
  const int64_t at = uploaded_;
  uploaded_ += (bytes + kUploadAlignment - 1) / kUploadAlignment * kUploadAlignment;
  if (mode_ == Mode::kTrial) return src;
  if (uploaded_ > step_.upload_bytes) throw Differs();
  void* kept = static_cast<char*>(step_.uploads.get()) + at;
  const bool issue = Issue(Piece::kUpload, dst, kept, bytes);
  std::memcpy(kept, src, static_cast<size_t>(bytes));
  return issue ? kept : nullptr;
}

void StepRecorder::Waits() {
  waits_ = true;
  if (mode_ != Mode::kTrial) throw Differs();
}

void* StepRecorder::Allocate(int64_t bytes) {
  if (mode_ == Mode::kTrial) return nullptr;
  void* ptr = arena_->Take(bytes);
  if (!ptr) throw Differs();
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
  kept_.push_back(ptr);
  return true;
}

void StepRecorder::CheckAtEnd() const {
  if (mode_ == Mode::kReplay && next_piece_ != step_.pieces.size()) throw Differs();
}

}  // namespace hone::runtime
