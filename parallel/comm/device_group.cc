#include "parallel/comm/device_group.h"

#include <map>
#include <utility>

#include "parallel/comm/nccl_process_group.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

// "" when every rank has a GPU to itself, else which ranks share which.
std::string SharedGpu(const std::vector<std::string>& identities) {
  std::map<std::string, int> owner;
  for (size_t r = 0; r < identities.size(); ++r) {
    auto [found, first] = owner.emplace(identities[r], static_cast<int>(r));
    if (!first) return fmt::format("ranks {} and {} share GPU {}", found->second, r, identities[r]);
  }
  return "";
}

}  // namespace

GroupPtr MakeDeviceGroup(const Context& ctx, GroupPtr control, GroupOptions options,
                         std::string* why) {
  std::string reason = "tensors are on the host";
  GroupPtr group = control;
  if (!ctx.device().is_cpu()) {
    std::string shared = SharedGpu(control->AllGatherBytes(GpuIdentity(ctx.device())));
    reason = shared.empty() ? "nccl: a GPU each" : "staged host buffers: " + shared;
    group = shared.empty() ? MakeNcclGroup(ctx, std::move(control), options)
                           : MakeStagedGroup(ctx, std::move(control));
  }
  if (why) *why = reason;
  return group;
}

}  // namespace hone::parallel
