// How CUDA's sources take part in a Replay (replay.h): whoever gives a stream work first tells the
// stream's recorder, if it has one. Included by *_cuda sources and the emulator only.
#pragma once

#include <cstring>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "runtime/allocator.h"
#include "runtime/arena_layout.h"

namespace hone::runtime {

// A block of device memory for the tensors of recorded steps, whose addresses must come again. It
// is freed when it is retired and nothing of it is in use. Thread safe.
class DeviceArena {
 public:
  static std::shared_ptr<DeviceArena> Make(std::shared_ptr<Allocator> allocator, int64_t bytes);
  static void Retire(std::shared_ptr<DeviceArena> arena);  // may be null

  void* Take(int64_t bytes);  // null where there is no room
  // False where `ptr` is of no arena of this process.
  static bool GiveBack(void* ptr);
  const ArenaLayout& layout() const { return layout_; }

  DeviceArena(std::shared_ptr<Allocator> allocator, int64_t bytes);
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

 private:
  std::shared_ptr<Allocator> allocator_;
  char* base_;
  ArenaLayout layout_;
  bool retired_ = false;
};

// Begins the description of a piece that is no kernel; a kernel's begins with its address.
enum class Piece : uint64_t { kCopy = 1, kUpload, kFill, kProduct, kFp8Product, kCudnn };

// The pieces between two cuts, which one graph starts.
struct RecordedSegment {
  std::vector<std::byte> pieces;  // their descriptions, one behind the other
  std::shared_ptr<void> graph;    // a cudaGraphExec_t
};

// What a step was when it was recorded.
struct RecordedStep {
  std::vector<RecordedSegment> segments;
  std::shared_ptr<void> uploads;  // pinned: what the host gives, where the recorded copies read it
  int64_t upload_bytes = 0;       // its size
};

class StepRecorder {
 public:
  // kTrial: all goes to the driver and is only measured. kCapture: all goes to the driver, which
  // puts it into graphs. kReplay: nothing goes to the driver but, at cuts, graphs. In every mode,
  // what comes between Pause and Resume goes to the driver and is not recorded.
  enum class Mode { kTrial, kCapture, kReplay };
  // Thrown, in kCapture and kReplay, where the step is not what it was; no error.
  struct Differs {};

  // While it lives, what this thread gives the allocator's stream is recorded. At its end it frees
  // what was kept; without Finish before, the step is abandoned: it waits until nothing of it runs.
  StepRecorder(Mode mode, Allocator& allocator, RecordedStep& step, DeviceArena* arena);
  ~StepRecorder();
  StepRecorder(const StepRecorder&) = delete;
  StepRecorder& operator=(const StepRecorder&) = delete;
  // Null where nothing is recorded.
  static StepRecorder* Of(const Stream& stream);
  static StepRecorder* OfThread();

  // Tells of a piece of work by all that decides what it does. True: hand it to the driver. The
  // parts are trivially copyable.
  template <class... Parts>
  bool Issue(const Parts&... parts) {
    std::byte bytes[(sizeof(Parts) + ... + 0)];
    std::byte* at = bytes;
    ((at = Append(at, parts)), ...);
    return IssueBytes(std::span<const std::byte>(bytes, at));
  }
  // Tells of a copy from ordinary host memory. What the driver is to copy from: `src` itself in
  // kTrial or when paused, memory that stays in kCapture, nothing (null) in kReplay.
  const void* Upload(void* dst, const void* src, int64_t bytes);
  // Before the host waits for the device, or the stream meets another one: starts what came since
  // the last cut, so that it is on the stream.
  void Cut();
  bool Pause();  // false where it was paused already
  void Resume() { recording_ = true; }
  // The step is over: starts the rest. Differs where pieces are missing.
  void Finish();

  void* Allocate(int64_t bytes);  // null: the pool's
  // True where `ptr`, the pool's, must not be freed before the step is over.
  bool Keep(void* ptr);
  // Of an allocation in kTrial.
  void Measure(void* ptr, int64_t bytes);

  int64_t arena_bytes() const { return trial_.peak(); }
  int64_t upload_bytes() const { return uploaded_; }
  int64_t segments() const { return static_cast<int64_t>(segment_); }  // until the last cut
  int64_t apart() const { return apart_; }                             // pauses

 private:
  template <class T>
  static std::byte* Append(std::byte* to, T part) {
    static_assert(std::is_trivially_copyable_v<T>);
    __builtin_clear_padding(&part);
    std::memcpy(to, &part, sizeof part);
    return to + sizeof part;
  }
  bool IssueBytes(std::span<const std::byte> description);
  void BeginCapture();
  void EndCapture();
  void Abandon();

  const Mode mode_;
  const int device_;
  Stream& stream_;
  RecordedStep& step_;
  DeviceArena* arena_;
  ArenaLayout trial_;
  std::unordered_map<void*, int64_t> trial_places_;
  size_t segment_ = 0;  // the current one
  size_t issued_ = 0;   // bytes of descriptions since the last cut
  int64_t uploaded_ = 0, apart_ = 0;
  bool recording_ = true, finished_ = false;
  std::vector<void*> kept_;
};

}  // namespace hone::runtime
