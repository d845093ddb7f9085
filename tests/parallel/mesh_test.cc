// ranks: 4
#include "parallel/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/config.h"
#include "runtime/error.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

using testing::HasSubstr;

std::vector<int> WorldRanks(const GroupPtr& group, int rank) {
  std::vector<int> ranks;
  for (const std::string& r : group->AllGatherBytes(std::to_string(rank))) {
    ranks.push_back(std::stoi(r));
  }
  return ranks;
}

// Membership as mesh.h defines it, found by looking at every rank.
std::vector<int> Where(int ranks, const std::function<bool(int)>& member) {
  std::vector<int> found;
  for (int r = 0; r < ranks; ++r) {
    if (member(r)) found.push_back(r);
  }
  return found;
}

void CheckGroups(const MeshConfig& config, const GroupPtr& world) {
  Mesh mesh(config, world);
  int rank = world->rank(), dp = config.dp, ep = config.ep;
  int n = config.ranks();
  EXPECT_EQ(mesh.pp_index(), rank / dp);
  EXPECT_EQ(mesh.dp_index(), rank % dp);
  EXPECT_EQ(mesh.ep_index(), rank % dp % ep);
  auto same_stage = [&](int r) { return r / dp == rank / dp; };
  EXPECT_EQ(WorldRanks(mesh.pp(), rank), Where(n, [&](int r) { return r % dp == rank % dp; }));
  EXPECT_EQ(WorldRanks(mesh.dp(), rank), Where(n, same_stage));
  EXPECT_EQ(WorldRanks(mesh.ep(), rank),
            Where(n, [&](int r) { return same_stage(r) && r % dp / ep == rank % dp / ep; }));
  EXPECT_EQ(WorldRanks(mesh.expert_data(), rank),
            Where(n, [&](int r) { return same_stage(r) && r % dp % ep == rank % dp % ep; }));
  EXPECT_EQ(mesh.pp()->rank(), mesh.pp_index());
  EXPECT_EQ(mesh.dp()->rank(), mesh.dp_index());
  EXPECT_EQ(mesh.ep()->rank(), mesh.ep_index());
}

TEST(Mesh, GroupsAreThoseOfTheHeader) {
  for (MeshConfig config : {MeshConfig{1, 1, 1},
                            {1, 2, 2},
                            {2, 1, 1},
                            {4, 1, 1},
                            {2, 2, 1},
                            {2, 2, 2},
                            {1, 4, 2},
                            {1, 4, 4},
                            {2, 4, 2}}) {
    SCOPED_TRACE(config.ToString());
    if (MpiWorld() != nullptr && config.ranks() != MpiWorld()->size()) continue;
    OnRanks({config.ranks()}, [&](const GroupPtr& world) { CheckGroups(config, world); });
  }
}

std::string ErrorOf(MeshConfig config, int world_size) {
  try {
    config.Validate(world_size);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Mesh, WhatDoesNotFitIsNamedWithWhatWould) {
  EXPECT_EQ(ErrorOf({2, 4, 4}, 8), "");
  EXPECT_THAT(ErrorOf({1, 4, 3}, 4),
              HasSubstr("ep = 3 does not divide dp = 4; choose ep from {1, 2, 4}"));
  EXPECT_THAT(ErrorOf({2, 2, 1}, 6), HasSubstr("= 4 ranks, but 6 were started"));
  EXPECT_THAT(ErrorOf({2, 2, 1}, 6), HasSubstr("pp from {1, 2, 3, 6}"));
  EXPECT_THAT(ErrorOf({0, 2, 1}, 2), HasSubstr("pp = 0"));
  EXPECT_THAT(ErrorOf({1, 2, -2}, 2), HasSubstr("ep = -2"));
}

TEST(Mesh, IsReadFromConfig) {
  Config file = Config::FromString("{pp: 2, dp: 4, ep: 2}");
  ConfigReader reader(file);
  MeshConfig config;
  config.Read(reader);
  reader.Finish();
  EXPECT_EQ(config.ToString(), "pp2·dp4·ep2");
  EXPECT_EQ(config.ranks(), 8);
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
