#include "rl/stages/peak_memory.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace hone::rl {

std::vector<std::map<std::string, int64_t>> GatherPeakBytes(Learner& learner) {
  constexpr int kTotal = runtime::kMemoryCategoryCount;
  const runtime::MemoryUsage usage = learner.ctx().allocator()->Usage();
  std::array<int64_t, kTotal + 1> peak{};
  std::copy(usage.peak.begin(), usage.peak.end(), peak.begin());
  peak[kTotal] = usage.peak_total;
  const std::string mine(reinterpret_cast<const char*>(peak.data()), sizeof peak);
  const auto all = learner.mesh().world()->AllGatherBytes(mine);
  const size_t replicas = static_cast<size_t>(learner.mesh().config().dp);
  std::vector<std::map<std::string, int64_t>> peaks(all.size() / replicas);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    std::memcpy(peak.data(), all[rank].data(), sizeof peak);
    for (int i = 0; i <= kTotal; ++i) {
      const std::string name =
          i == kTotal ? "total" : std::string(MemoryCategoryName(static_cast<MemoryCategory>(i)));
      int64_t& highest = peaks[rank / replicas][name];
      highest = std::max(highest, peak[i]);
    }
  }
  return peaks;
}

}  // namespace hone::rl
