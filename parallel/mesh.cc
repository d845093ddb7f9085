#include "parallel/mesh.h"

#include <utility>

#include "parallel/comm/list_text.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

std::vector<int> Divisors(int n) {
  std::vector<int> divisors;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) divisors.push_back(d);
  }
  return divisors;
}

}  // namespace

void MeshConfig::Read(ConfigReader& reader) {
  reader.Optional("pp", &pp);
  reader.Optional("dp", &dp);
  reader.Optional("ep", &ep);
}

void MeshConfig::Validate(int world_size) const {
  for (auto [axis, size] : {std::pair{"pp", pp}, {"dp", dp}, {"ep", ep}}) {
    Check<ConfigError>(size >= 1, "[mesh] {} = {}; an axis has at least one rank", axis, size);
  }
  Check<ConfigError>(dp % ep == 0, "[mesh] ep = {} does not divide dp = {}; choose ep from {{{}}}",
                     ep, dp, ListText(Divisors(dp)));
  Check<ConfigError>(
      ranks() == world_size,
      "[mesh] pp · dp = {} · {} = {} ranks, but {} were started; start {}, or choose "
      "pp from {{{}}} and dp = {} / pp",
      pp, dp, ranks(), world_size, ranks(), ListText(Divisors(world_size)), world_size);
}

std::string MeshConfig::ToString() const { return fmt::format("pp{}·dp{}·ep{}", pp, dp, ep); }

Mesh::Mesh(const MeshConfig& config, GroupPtr world) : config_(config), world_(std::move(world)) {
  config_.Validate(world_->size());
  pp_index_ = world_->rank() / config_.dp;
  dp_index_ = world_->rank() % config_.dp;
  pp_ = world_->Split(dp_index_, pp_index_, fmt::format("pp (dp {})", dp_index_));
  tied_ = pp_->Split(0, pp_index_, pp_->name() + ".tied");
  dp_ = world_->Split(pp_index_, dp_index_, fmt::format("dp (pp {})", pp_index_));
  int block = dp_index_ / config_.ep;
  ep_ = dp_->Split(block, dp_index_, fmt::format("ep (pp {}, dp block {})", pp_index_, block));
  expert_data_ = dp_->Split(ep_index(), dp_index_,
                            fmt::format("expert_data (pp {}, ep {})", pp_index_, ep_index()));
}

}  // namespace hone::parallel
