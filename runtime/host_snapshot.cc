#include "runtime/host_snapshot.h"

#include <algorithm>
#include <utility>

namespace hone::runtime {

HostSnapshot::HostSnapshot() = default;
HostSnapshot::~HostSnapshot() {
  try {
    Wait();
  } catch (const Error&) {  // shows where the device is used next
  }
}

char* HostSnapshot::Room(int64_t bytes, bool pinned) {
  if (bytes > capacity_ || pinned > pinned_) {
    memory_.reset();  // never both at once
    memory_ = pinned ? MakePinned(bytes)
                     : std::shared_ptr<void>(new char[static_cast<size_t>(bytes)],
                                             [](void* p) { delete[] static_cast<char*>(p); });
    capacity_ = bytes;
    pinned_ = pinned;
  }
  return static_cast<char*>(memory_.get());
}

std::vector<Tensor> HostSnapshot::Take(const std::vector<Tensor>& tensors, Stream* stream) {
  Wait();
  auto behind_stream = [&](const Tensor& t) {
    return stream && !t.device().is_cpu() && t.contiguous();
  };
  const auto device = std::find_if(tensors.begin(), tensors.end(), behind_stream);
  int64_t bytes = 0;
  for (const Tensor& t : tensors) bytes += t.bytes();
  char* at = Room(bytes, device != tensors.end());
  if (device != tensors.end()) {
    if (!stream_) {
      stream_ = MakeStream(device->device());
      behind_ = MakeEvent(device->device());
      done_ = MakeEvent(device->device());
    }
    behind_->Record(*stream);
    behind_->Wait(*stream_);
  }
  std::vector<Tensor> copies;
  for (const Tensor& t : tensors) {
    Tensor& copy =
        copies.emplace_back(std::exchange(at, at + t.bytes()), t.shape(), t.dtype(), Device::Cpu());
    if (behind_stream(t)) {
      CopyBytesAsync(copy.raw(), Device::Cpu(), t.raw(), t.device(), t.bytes(), *stream_);
    } else {
      CopyTo(t, copy);
    }
  }
  if (stream_) done_->Record(*stream_);
  return copies;
}

void HostSnapshot::Hold(Stream& stream) {
  if (stream_) done_->Wait(stream);
}

void HostSnapshot::Wait() {
  if (stream_) done_->Synchronize();
}

}  // namespace hone::runtime
