#include "runtime/replay.h"

namespace hone::runtime {

void Replay::Run(int64_t, const std::function<void()>& work) { work(); }

std::unique_ptr<Replay> MakeReplay(const std::shared_ptr<Allocator>& allocator,
                                   int64_t most_graphs) {
  if (!allocator->device().is_cpu()) return MakeCudaReplay(allocator, most_graphs);
  return std::make_unique<Replay>();
}

}  // namespace hone::runtime
