// Optimizer states that live in pinned host memory and pass through the device in pieces.
//
// Why they are streamed and not updated by the CPU's AdamW: a parameter with f32 states costs
// 12 bytes each way over the bus, in both directions at once, against 4 down (gradient) and 2 up
// (value); but the host's memory, which several GPUs share, sees 24 bytes instead of about 36, no
// core of the CPU is needed, and the kernel is the one that runs without offload: the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/context.h"

namespace hone::parallel {

// `kPieces` pieces are on the device at a time: one arrives, one is worked on, one leaves. Copies
// run on two streams of their own; events order them with the context's.
class StateStream {
 public:
  static constexpr int kPieces = 3;
  // A piece holds at most `piece_bytes` of all arrays together, but one element at least.
  StateStream(Context& ctx, int64_t piece_bytes);
  ~StateStream();

  // Elements [begin, end) of every array, flat and on the device; to be changed in place by work on
  // the context's stream. Gone when the call that gets it returns.
  struct Piece {
    int64_t begin = 0, end = 0;
    std::vector<Tensor> arrays;
  };
  using Work = std::function<void(const Piece&)>;

  // Memory for the pieces, of the context's allocator, is held from Begin to End only. After End
  // all that the context's stream is given comes behind the last copy; the host sees what was
  // written once that stream is through.
  void Begin();
  // `host`: flat tensors of one size, of MakePinned. Between Begin and End, any number of times.
  void Run(const std::vector<Tensor>& host, const Work& work);
  void End();

 private:
  struct Slot {
    Tensor memory;  // bytes
    std::unique_ptr<Event> arrived, worked, left;
  };
  Piece Bring(const std::vector<Tensor>& host, int64_t begin, int64_t end, Slot& slot);
  void TakeBack(const Piece& piece, const std::vector<Tensor>& host, Slot& slot);

  Context& ctx_;
  int64_t piece_bytes_;
  std::array<Slot, kPieces> slots_;
  int next_ = 0;  // slot
  std::unique_ptr<Event> begun_;
  std::unique_ptr<Stream> arriving_, leaving_;  // last: the end of a stream waits for its copies
};

}  // namespace hone::parallel
