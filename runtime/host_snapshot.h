// Copies of tensors in host memory, made while the device goes on working.
#pragma once

#include <memory>
#include <vector>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace hone::runtime {

// Copies from a device go into pinned memory on a stream of their own. Only Wait may be called by
// another thread.
class HostSnapshot {
 public:
  HostSnapshot();
  ~HostSnapshot();

  // Copies without gaps, in order; what an earlier Take returned is gone. Those of tensors on the
  // host are there at once, the others when Wait returns, with the values that they have behind all
  // that `stream` (of their device) has been given. Where it is null they are there at once too.
  std::vector<Tensor> Take(const std::vector<Tensor>& tensors, Stream* stream);
  // Makes `stream` wait, on the device, until the tensors have been read: before they are changed,
  // or freed on it.
  void Hold(Stream& stream);
  void Wait();

 private:
  char* Room(int64_t bytes, bool pinned);

  std::shared_ptr<void> memory_;
  int64_t capacity_ = 0;
  bool pinned_ = false;
  std::unique_ptr<Stream> stream_;        // of the copies; null before the first from a device
  std::unique_ptr<Event> behind_, done_;  // the work before them; their end
};

}  // namespace hone::runtime
