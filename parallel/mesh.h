// The arrangement of learner ranks: pp × dp, with expert parallelism inside dp.
//
// rank = pp_index · dp + dp_index. ep divides dp: ranks with the same dp_index / ep share one set
// of experts (each holds experts / ep of them); ranks with the same dp_index % ep hold the same
// experts. tp and cp are reserved at 1.
#pragma once

#include <string>
#include <vector>

#include "parallel/comm/process_group.h"
#include "runtime/config.h"

namespace hone::parallel {

struct MeshConfig {
  int pp = 1, dp = 1, ep = 1;

  void Read(ConfigReader& reader);
  int ranks() const { return pp * dp; }
  // ConfigError naming the axis and what would fit.
  void Validate(int world_size) const;
  std::string ToString() const;  // "pp2·dp4·ep4"
};

class Mesh {
 public:
  // Collective over `world`.
  Mesh(const MeshConfig& config, GroupPtr world);

  const MeshConfig& config() const { return config_; }
  int pp_index() const { return pp_index_; }
  int dp_index() const { return dp_index_; }
  int ep_index() const { return dp_index_ % config_.ep; }
  const GroupPtr& world() const { return world_; }
  const GroupPtr& pp() const { return pp_; }      // ranks of one pipeline
  const GroupPtr& tied() const { return tied_; }  // the same; for tied parameters' tags
  const GroupPtr& dp() const { return dp_; }      // replicas of this stage
  const GroupPtr& ep() const { return ep_; }      // ranks that exchange tokens
  const GroupPtr& expert_data() const { return expert_data_; }  // replicas of the same experts

 private:
  MeshConfig config_;
  GroupPtr world_, pp_, tied_, dp_, ep_, expert_data_;
  int pp_index_ = 0, dp_index_ = 0;
};

}  // namespace hone::parallel
