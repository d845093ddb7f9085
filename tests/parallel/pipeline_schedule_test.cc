// Schedules as data: no rank talks to another here.
#include "parallel/pipeline_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <tuple>

#include "runtime/error.h"

namespace hone::parallel {
namespace {

using Kind = Action::Kind;
using Lists = std::vector<std::vector<Action>>;
constexpr int kRanks[] = {1, 2, 3, 4, 5, 8};

// Every shape of a grid that its schedule allows.
void ForEachShape(const std::function<void(const PipelineShape&)>& fn) {
  for (int p : kRanks) {
    for (int m : {1, 2, 3, 4, 5, 6, 8, 10, 11, 15, 16, 19, 24}) {
      fn({ScheduleKind::kGPipe, p, 1, m});
      fn({ScheduleKind::k1F1B, p, 1, m});
      if (m >= p) fn({ScheduleKind::kZbH1, p, 1, m});
      if (m >= 2 * p) fn({ScheduleKind::kDualPipeV, p, 2, m});
      for (int v : {1, 2, 3, 4}) {
        if (m % p == 0) fn({ScheduleKind::kInterleaved, p, v, m});
      }
    }
  }
}

std::string Describe(const PipelineShape& s) {
  return ScheduleName(s.kind) + " p=" + std::to_string(s.ranks) + " v=" + std::to_string(s.chunks) +
         " m=" + std::to_string(s.microbatches);
}

// The halves of an action, as (what, chunk, microbatch): a forward, an input half, a weight half.
enum class Half { kForward, kInput, kWeight };
std::vector<std::tuple<Half, int, int>> HalvesOf(const Action& a) {
  switch (a.kind) {
    case Kind::kForward:
      return {{Half::kForward, a.chunk, a.microbatch}};
    case Kind::kBackwardInput:
      return {{Half::kInput, a.chunk, a.microbatch}};
    case Kind::kBackwardWeight:
      return {{Half::kWeight, a.chunk, a.microbatch}};
    case Kind::kBackward:
      return {{Half::kInput, a.chunk, a.microbatch}, {Half::kWeight, a.chunk, a.microbatch}};
    case Kind::kForwardBackward:
      return {{Half::kForward, a.chunk, a.microbatch},
              {Half::kInput, a.pair_chunk, a.pair_microbatch},
              {Half::kWeight, a.pair_chunk, a.pair_microbatch}};
  }
  return {};
}

// Runs the lists in any order that dependencies allow, knowing nothing of Simulate. Returns what is
// wrong.
std::string FirstBrokenRule(const PipelineShape& shape, const Lists& lists) {
  std::set<std::tuple<Half, int, int>> done;  // (half, stage, microbatch)
  std::vector<size_t> next(lists.size(), 0);
  auto is_done = [&](Half half, int stage, int mb) { return done.count({half, stage, mb}) > 0; };
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = 0; rank < shape.ranks; ++rank) {
      while (next[rank] < lists[rank].size()) {
        const Action& a = lists[rank][next[rank]];
        bool ready = true;
        const auto halves = HalvesOf(a);
        for (auto [half, chunk, mb] : halves) {
          const int stage = shape.StageOf(rank, chunk);
          if (is_done(half, stage, mb)) return a.ToString() + " runs twice";
          if (half == Half::kForward && stage > 0) ready &= is_done(half, stage - 1, mb);
          if (half == Half::kInput) {
            if (!is_done(Half::kForward, stage, mb)) return a.ToString() + " before its forward";
            if (stage + 1 < shape.stages()) ready &= is_done(half, stage + 1, mb);
          }
          if (half == Half::kWeight && halves.size() == 1 && !is_done(Half::kInput, stage, mb)) {
            return a.ToString() + " before its input half";
          }
        }
        if (!ready) break;
        for (auto [half, chunk, mb] : halves) done.insert({half, shape.StageOf(rank, chunk), mb});
        ++next[rank];
        moved = true;
      }
    }
  }
  for (size_t rank = 0; rank < lists.size(); ++rank) {
    if (next[rank] != lists[rank].size()) return "rank " + std::to_string(rank) + " waits for ever";
  }
  const size_t want = size_t{3} * shape.stages() * shape.microbatches;
  return done.size() == want ? "" : "an action is missing";
}

TEST(PipelineSchedule, EveryActionOnceInAnOrderThatDependenciesAllow) {
  ForEachShape([](const PipelineShape& shape) {
    EXPECT_EQ(FirstBrokenRule(shape, BuildSchedule(shape)), "") << Describe(shape);
  });
}

TEST(PipelineSchedule, EachChunkTakesItsMicrobatchesInOrder) {
  ForEachShape([](const PipelineShape& shape) {
    for (const auto& list : BuildSchedule(shape)) {
      std::map<std::pair<Half, int>, int> next;
      for (const Action& a : list) {
        for (auto [half, chunk, mb] : HalvesOf(a)) {
          EXPECT_EQ(mb, (next[{half, chunk}]++)) << Describe(shape) << " " << a.ToString();
        }
      }
    }
  });
}

TEST(PipelineSchedule, StagesMapToRanksAndBack) {
  ForEachShape([](const PipelineShape& shape) {
    std::set<int> seen;
    for (int rank = 0; rank < shape.ranks; ++rank) {
      for (int chunk = 0; chunk < shape.chunks; ++chunk) {
        const int stage = shape.StageOf(rank, chunk);
        seen.insert(stage);
        EXPECT_EQ(shape.RankOf(stage), rank) << Describe(shape);
        EXPECT_EQ(shape.ChunkOf(stage), chunk) << Describe(shape);
      }
    }
    EXPECT_EQ(static_cast<int>(seen.size()), shape.stages());
  });
}

TEST(PipelineSchedule, ActivationsInFlightAreTheBound) {
  ForEachShape([](const PipelineShape& shape) {
    const int p = shape.ranks, v = shape.chunks, m = shape.microbatches;
    const auto peak = Simulate(shape, BuildSchedule(shape), {}).peak_in_flight;
    for (int r = 0; r < p; ++r) {
      int want = m;  // GPipe
      if (shape.kind == ScheduleKind::k1F1B) want = std::min(p - r, m);
      if (shape.kind == ScheduleKind::kZbH1) want = p;
      if (shape.kind == ScheduleKind::kInterleaved) {
        want = std::min(2 * (p - 1 - r) + (v - 1) * p + 1, m * v);
      }
      if (shape.kind == ScheduleKind::kDualPipeV) want = 2 * p + 1;
      EXPECT_EQ(peak[r], want) << Describe(shape) << " rank " << r;
    }
  });
}

double WorstBubble(const PipelineShape& shape, const ScheduleCosts& costs) {
  const auto bubble = Simulate(shape, BuildSchedule(shape), costs).bubble;
  return *std::max_element(bubble.begin(), bubble.end());
}

// F: forward. B: the whole backward. W: its weight half.
TEST(PipelineSchedule, BubbleOf1F1BAndGPipe) {
  for (int p : kRanks) {
    for (int m : {1, 2, 3, 4, 7, 8, 16, 33}) {
      for (double F : {1.0, 2.0, 3.5}) {
        for (double B : {1.0, 2.0, 7.0}) {
          const ScheduleCosts costs{F, B / 2, B / 2};
          EXPECT_DOUBLE_EQ(WorstBubble({ScheduleKind::k1F1B, p, 1, m}, costs), (p - 1) * (F + B));
          EXPECT_DOUBLE_EQ(WorstBubble({ScheduleKind::kGPipe, p, 1, m}, costs), (p - 1) * (F + B));
        }
      }
    }
  }
}

// F and B of a rank's whole share: a chunk has 1/v of it.
TEST(PipelineSchedule, BubbleOfInterleaved) {
  for (int p : kRanks) {
    for (int m : {p, 2 * p, 3 * p, 5 * p}) {
      for (int v : {1, 2, 3, 4}) {
        for (double F : {1.0, 2.0, 3.0}) {
          for (double B : {1.0, 2.0, 7.0}) {
            const ScheduleCosts chunk{F / v, B / 2 / v, B / 2 / v};
            EXPECT_NEAR(WorstBubble({ScheduleKind::kInterleaved, p, v, m}, chunk),
                        (p - 1) * (F + B) / v, 1e-9)
                << "p=" << p << " m=" << m << " v=" << v;
          }
        }
      }
    }
  }
}

// The published formula while W is the smallest cost. Otherwise no schedule of this memory reaches
// it: the last rank idles (p − 1)·F before its first forward, and the first (p − 1)·(B − W) before
// its first backward.
TEST(PipelineSchedule, BubbleOfZbH1) {
  for (int p : kRanks) {
    for (int m : {p, p + 1, 2 * p - 1, 2 * p, 3 * p + 2}) {
      for (int F = 1; F <= 4; ++F) {
        for (int input = 1; input <= 4; ++input) {
          for (int W = 1; W <= 5; ++W) {
            const int B = input + W;
            const double bubble =
                WorstBubble({ScheduleKind::kZbH1, p, 1, m}, {1.0 * F, 1.0 * input, 1.0 * W});
            if (W <= std::min(F, input)) {
              EXPECT_EQ(bubble, (p - 1) * (F + B - 2 * W)) << "p=" << p << " m=" << m;
            }
            EXPECT_EQ(bubble, (p - 1) * std::max({F + B - 2 * W, F, input}));
          }
        }
      }
    }
  }
}

// Costs of one chunk, half a rank's share; F is also the input half, B = F + W. The pair costs
// anything from the longer of the two to their sum.
TEST(PipelineSchedule, BubbleOfDualPipeV) {
  for (int p : kRanks) {
    for (int m : {2 * p, 2 * p + 1, 2 * p + 2, 3 * p, 5 * p + 1}) {
      for (int F = 1; F <= 5; ++F) {
        for (int W = 1; W <= F; ++W) {
          const int B = F + W;
          for (int pair = B; pair <= F + B; ++pair) {
            const ScheduleCosts costs{1.0 * F, 1.0 * F, 1.0 * W, 1.0 * pair};
            EXPECT_EQ(WorstBubble({ScheduleKind::kDualPipeV, p, 2, m}, costs),
                      (p - 1) * (pair + B - 3 * W))
                << "p=" << p << " m=" << m << " F=" << F << " W=" << W << " F&B=" << pair;
          }
        }
      }
    }
  }
}

TEST(PipelineSchedule, CombinationsOutsideAScheduleAreRefusedByName) {
  auto message = [](const PipelineShape& shape) -> std::string {
    try {
      BuildSchedule(shape);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "accepted";
  };
  using ::testing::AllOf;
  using ::testing::HasSubstr;
  EXPECT_THAT(message({ScheduleKind::kInterleaved, 4, 2, 6}),
              AllOf(HasSubstr("interleaved"), HasSubstr("6 microbatches"), HasSubstr("4 ranks")));
  EXPECT_THAT(message({ScheduleKind::kZbH1, 4, 1, 3}),
              AllOf(HasSubstr("zb_h1"), HasSubstr("3 microbatches"), HasSubstr("at least 4")));
  EXPECT_THAT(message({ScheduleKind::kDualPipeV, 4, 2, 7}),
              AllOf(HasSubstr("dualpipe_v"), HasSubstr("7 microbatches"), HasSubstr("least 8")));
  EXPECT_THAT(message({ScheduleKind::kDualPipeV, 4, 3, 8}),
              AllOf(HasSubstr("dualpipe_v"), HasSubstr("3 chunks"), HasSubstr("exactly 2")));
  EXPECT_THAT(message({ScheduleKind::k1F1B, 4, 2, 8}),
              AllOf(HasSubstr("1f1b"), HasSubstr("2 chunks"), HasSubstr("interleaved")));
  EXPECT_THAT(message({ScheduleKind::kGPipe, 0, 1, 8}), HasSubstr("gpipe"));
  EXPECT_THAT(message({ScheduleKind::k1F1B, 2, 1, 0}), HasSubstr("0 microbatches"));
  EXPECT_EQ(message({ScheduleKind::k1F1B, 4, 1, 1}), "accepted");
}

TEST(PipelineSchedule, FittingMicrobatchesAreTheFewestThatPass) {
  for (ScheduleKind kind : {ScheduleKind::kGPipe, ScheduleKind::k1F1B, ScheduleKind::kInterleaved,
                            ScheduleKind::kZbH1, ScheduleKind::kDualPipeV}) {
    for (int ranks = 1; ranks <= 5; ++ranks) {
      for (int wanted = 1; wanted <= 12; ++wanted) {
        const bool two = kind == ScheduleKind::kInterleaved || kind == ScheduleKind::kDualPipeV;
        PipelineShape shape{kind, ranks, two ? 2 : 1, wanted};
        for (;; ++shape.microbatches) {
          try {
            shape.Validate();
            break;
          } catch (const ConfigError&) {
          }
        }
        EXPECT_EQ(shape.FittingMicrobatches(wanted), shape.microbatches)
            << ScheduleName(kind) << " " << ranks << " " << wanted;
      }
    }
  }
}

TEST(PipelineSchedule, ForwardOnlyRunsEachForwardOnceWithoutDeadlock) {
  for (int p : kRanks) {
    for (int m : {0, 1, 2, 3, 7, 8}) {
      for (auto [kind, chunks] :
           std::vector<std::pair<ScheduleKind, int>>{{ScheduleKind::kGPipe, 1},
                                                     {ScheduleKind::kInterleaved, 3},
                                                     {ScheduleKind::kDualPipeV, 2}}) {
        const PipelineShape shape{kind, p, chunks, m};
        const Lists lists = BuildForwardSchedule(shape);
        std::set<std::pair<int, int>> seen;
        for (int rank = 0; rank < p; ++rank) {
          for (const Action& a : lists[rank]) {
            EXPECT_EQ(a.kind, Kind::kForward);
            EXPECT_TRUE(seen.insert({shape.StageOf(rank, a.chunk), a.microbatch}).second);
          }
        }
        EXPECT_EQ(static_cast<int>(seen.size()), shape.stages() * m) << Describe(shape);
        EXPECT_NO_THROW(Simulate(shape, lists, {})) << Describe(shape);
      }
    }
  }
}

TEST(PipelineSchedule, SimulationNamesTheRankThatWaitsForEver) {
  const PipelineShape shape{ScheduleKind::k1F1B, 2, 1, 2};
  Lists lists = BuildSchedule(shape);
  lists[1].erase(lists[1].begin() + 1);  // rank 1 never runs its first backward
  try {
    Simulate(shape, lists, {});
    FAIL() << "ran to its end";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("rank 0 waits for ever"));
    EXPECT_THAT(e.what(), ::testing::HasSubstr("B0.0"));
  }
  std::swap(lists[0][0], lists[0][2]);  // a backward before its forward
  EXPECT_THROW(Simulate(shape, lists, {}), Error);
}

// By hand: rank 0 runs F0.0 F0.1, rank 1 pairs the forward of microbatch 1 with the backward of 0.
TEST(PipelineSchedule, SimulationWaitsForBothHalvesOfAPair) {
  const PipelineShape shape{ScheduleKind::k1F1B, 2, 1, 2};
  const Lists lists = {
      {{Kind::kForward, 0, 0},
       {Kind::kForward, 0, 1},
       {Kind::kBackward, 0, 0},
       {Kind::kBackward, 0, 1}},
      {{Kind::kForward, 0, 0}, {Kind::kForwardBackward, 0, 1, 0, 0}, {Kind::kBackward, 0, 1}}};
  // Forward 4, backward 1 + 1, the pair 5: rank 1 runs F 4–8, pair 8–13, B 13–15; rank 0 B 13–15,
  // 15–17.
  auto result = Simulate(shape, lists, {4, 1, 1, 5});
  EXPECT_EQ(result.total, 17);
  EXPECT_EQ(result.busy, (std::vector<double>{12, 11}));
  EXPECT_EQ(result.bubble, (std::vector<double>{5, 6}));
  EXPECT_EQ(result.peak_in_flight, (std::vector<int>{2, 2}));
  // Rank 0 waits for the backward inside the pair, whose forward waits for rank 0.
  const Lists late = {{{Kind::kForward, 0, 0}, {Kind::kBackward, 0, 0}, {Kind::kForward, 0, 1}},
                      lists[1]};
  EXPECT_THROW(Simulate(shape, late, {}), Error);
}

}  // namespace
}  // namespace hone::parallel
