#include "parallel/state_stream.h"

#include <algorithm>

#include "runtime/error.h"

namespace hone::parallel {
namespace {

constexpr int64_t kAlign = 256;  // bytes; arrays of a piece begin at multiples

int64_t Aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

StateStream::StateStream(Context& ctx, int64_t piece_bytes)
    : ctx_(ctx),
      piece_bytes_(piece_bytes),
      begun_(runtime::MakeEvent(ctx.device())),
      arriving_(runtime::MakeStream(ctx.device())),
      leaving_(runtime::MakeStream(ctx.device())) {
  Check(piece_bytes > 0, "[state_stream] pieces of {} bytes", piece_bytes);
  for (Slot& slot : slots_) {
    slot.arrived = runtime::MakeEvent(ctx.device());
    slot.worked = runtime::MakeEvent(ctx.device());
    slot.left = runtime::MakeEvent(ctx.device());
  }
}

StateStream::~StateStream() = default;

// What the last round wrote to the host is before this event too: End made the stream wait for it.
void StateStream::Begin() {
  for (Slot& slot : slots_) slot.left->Record(ctx_.stream());
  begun_->Record(ctx_.stream());
  begun_->Wait(*arriving_);
}

void StateStream::End() {
  for (Slot& slot : slots_) {
    slot.left->Wait(ctx_.stream());
    slot.memory = Tensor();
  }
}

void StateStream::Run(const std::vector<Tensor>& host, const Work& work) {
  int64_t width = 0;  // bytes of an element, in all arrays
  for (const Tensor& array : host) {
    CheckShape(array.ndim() == 1 && array.size() == host[0].size() && array.device().is_cpu(),
               "[state_stream] an array of shape {} on {} beside {}: flat host tensors of one size "
               "are wanted",
               runtime::ShapeToString(array.shape()), array.device().ToString(),
               runtime::ShapeToString(host[0].shape()));
    width += runtime::DTypeSize(array.dtype());
  }
  const int64_t step = std::max<int64_t>(1, piece_bytes_ / width);
  for (int64_t begin = 0; begin < host[0].size(); begin += step) {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % kPieces;
    const Piece piece = Bring(host, begin, std::min(begin + step, host[0].size()), slot);
    work(piece);
    TakeBack(piece, host, slot);
  }
}

StateStream::Piece StateStream::Bring(const std::vector<Tensor>& host, int64_t begin, int64_t end,
                                      Slot& slot) {
  int64_t bytes = 0;
  for (const Tensor& array : host) bytes += Aligned((end - begin) * DTypeSize(array.dtype()));
  if (!slot.memory.defined() || slot.memory.size() < bytes) {
    slot.left->Wait(ctx_.stream());  // the smaller one's last copy
    slot.memory = Tensor();
    slot.memory = ctx_.Empty({bytes}, DType::kU8, MemoryCategory::kOptimizer);
    slot.left->Record(ctx_.stream());
  }
  slot.left->Wait(*arriving_);
  Piece piece{begin, end, {}};
  char* at = static_cast<char*>(slot.memory.raw());
  for (const Tensor& array : host) {
    const int64_t size = (end - begin) * DTypeSize(array.dtype());
    piece.arrays.emplace_back(at, Shape{end - begin}, array.dtype(), ctx_.device());
    CopyBytesAsync(at, ctx_.device(), array.Slice(begin, end).raw(), Device::Cpu(), size,
                   *arriving_);
    at += Aligned(size);
  }
  slot.arrived->Record(*arriving_);
  slot.arrived->Wait(ctx_.stream());
  return piece;
}

void StateStream::TakeBack(const Piece& piece, const std::vector<Tensor>& host, Slot& slot) {
  slot.worked->Record(ctx_.stream());
  slot.worked->Wait(*leaving_);
  for (size_t i = 0; i < host.size(); ++i) {
    CopyBytesAsync(host[i].Slice(piece.begin, piece.end).raw(), Device::Cpu(),
                   piece.arrays[i].raw(), ctx_.device(), piece.arrays[i].bytes(), *leaving_);
  }
  slot.left->Record(*leaving_);
}

}  // namespace hone::parallel
