// emulated: descending random:1
// Steps that are replayed against steps that are run: the same bits, whatever changes between two.
#include "runtime/replay.h"

#include <functional>
#include <optional>
#include <set>

#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/linear/linear.h"
#include "kernels/moe_permute/moe_permute.h"
#include "kernels/router/router.h"
#include "tests/kernels/row_ops.h"

namespace hone::kernels::testing {
namespace {

constexpr int64_t kVocabulary = 9, kDim = 20, kOut = 6;

std::vector<int32_t> Tokens(int64_t count, int32_t seed) {
  std::vector<int32_t> tokens;
  for (int32_t t = 0; t < count; ++t) tokens.push_back((seed + t * t) % kVocabulary);
  return tokens;
}

class ReplayTest : public ::testing::Test {
 protected:
  // y = (2 · table[tokens]) · wᵀ: uploads, kernels, a product, memory that is used twice.
  Tensor Step(const std::vector<int32_t>& tokens) {
    Tensor x = Embedding(ctx_, table_, tokens);
    AddInPlace(ctx_, x, Embedding(ctx_, table_, tokens));
    return Linear(ctx_, x, w_, nullptr);
  }
  // Runs a step both ways.
  void Check(const std::vector<int32_t>& tokens, const std::string& where) {
    Tensor y;
    replay_->Run(static_cast<int64_t>(tokens.size()), [&] { y = Step(tokens); });
    ExpectSameBits(y, Step(tokens), where);
  }
  // CUDA replays, the CPU just runs.
  void ExpectStats(int64_t recorded, int64_t replayed) {
    if (ctx_.device().is_cpu()) recorded = replayed = 0;
    EXPECT_EQ(replay_->stats().recorded, recorded);
    EXPECT_EQ(replay_->stats().replayed, replayed);
  }
  int64_t Live() const { return ctx_.allocator()->Usage().live_total; }

  Context ctx_{TestDevice()};
  Tensor table_ = Random(ctx_, {kVocabulary, kDim}, DType::kF32, 1);
  Tensor w_ = Random(ctx_, {kOut, kDim}, DType::kF32, 2);
  std::unique_ptr<runtime::Replay> replay_ = runtime::MakeReplay(ctx_.allocator());
};

TEST_F(ReplayTest, HostValuesMayChange) {
  for (int32_t i = 0; i < 6; ++i) Check(Tokens(5, i), fmt::format("step {}", i));
  ExpectStats(1, 4);  // the first one ran, the second was recorded
}

TEST_F(ReplayTest, KeysTakeTurns) {
  for (int32_t i = 0; i < 4; ++i) {
    for (int64_t rows : {3, 8, 5}) Check(Tokens(rows, i), fmt::format("{} rows", rows));
  }
  // A larger step moves the memory of smaller ones, which are recorded once more.
  EXPECT_GE(replay_->stats().replayed, ctx_.device().is_cpu() ? 0 : 3);
}

TEST_F(ReplayTest, ValuesBehindTheSameAddressAreRead) {
  for (uint64_t i = 0; i < 5; ++i) {
    CopyTo(Random(ctx_, {kOut, kDim}, DType::kF32, 10 + i), w_, &ctx_.stream());
    Check(Tokens(5, 0), fmt::format("step {}", i));
  }
  ExpectStats(1, 3);
}

TEST_F(ReplayTest, OtherAddressesAreRecordedAnew) {
  std::vector<Tensor> kept;
  for (uint64_t i = 0; i < 8; ++i) {
    if (i == 4) {
      kept.push_back(w_);
      w_ = Random(ctx_, {kOut, kDim}, DType::kF32, 3);
    }
    Check(Tokens(5, 0), fmt::format("step {}", i));
  }
  ExpectStats(2, 4);
}

TEST_F(ReplayTest, AStepThatIsNeverTheSameIsRunAsItIs) {
  for (int32_t i = 0; i < 40; ++i) {
    std::vector<int32_t> tokens = Tokens(3 + i % 4, i);
    Tensor y;
    replay_->Run(0, [&] { y = Step(tokens); });
    ExpectSameBits(y, Step(tokens), fmt::format("step {}", i));
  }
  EXPECT_EQ(replay_->stats().replayed, 0);
  EXPECT_LE(replay_->stats().recorded, 8);
}

TEST_F(ReplayTest, WhatIsReadFromTheDeviceMayDecideWhatComesNext) {
  auto work = [&](int32_t i) {
    std::vector<int32_t> next;
    for (double v : runtime::ToDoubles(Step(Tokens(5, i)))) {
      next.push_back(static_cast<int32_t>(std::abs(v) * 100) % kVocabulary);
    }
    next.resize(5);
    Tensor y = Step(next);
    ctx_.stream().Synchronize();
    ctx_.stream().Synchronize();  // nothing came since the last
    return y;
  };
  for (int32_t i = 0; i < 5; ++i) {
    Tensor y;
    replay_->Run(1, [&] { y = work(i); });
    ExpectSameBits(y, work(i), fmt::format("step {}", i));
  }
  ExpectStats(1, 3);
  EXPECT_EQ(replay_->stats().segments, ctx_.device().is_cpu() ? 0 : 2 * 3);
}

TEST_F(ReplayTest, APieceLessBeforeAWaitIsAnotherStep) {
  for (int32_t i = 0; i < 12; ++i) {
    auto work = [&] {
      Tensor y = Step(Tokens(5, i));
      if (i < 4) AddInPlace(ctx_, y, y);
      ctx_.stream().Synchronize();
      if (i < 8) AddInPlace(ctx_, y, y);
      return y;
    };
    Tensor y;
    replay_->Run(5, [&] { y = work(); });
    ExpectSameBits(y, work(), fmt::format("step {}", i));
  }
  ExpectStats(3, 6);
}

TEST_F(ReplayTest, MemoryComesBack) {
  const int64_t before = Live();
  {
    Tensor older = ctx_.Empty({1000}, DType::kF32), left;
    for (int32_t i = 0; i < 5; ++i) {
      replay_->Run(5, [&] {
        left = Step(Tokens(5, i));
        older = Tensor();  // of before the step, freed in it
      });
      ExpectSameBits(left, Step(Tokens(5, i)), "left");
      older = ctx_.Empty({1000 + i}, DType::kF32);
    }
    replay_.reset();
    EXPECT_EQ(ToDoubles(left).size(), 5u * kOut) << "what is in use outlives the Replay";
  }
  ctx_.stream().Synchronize();
  EXPECT_EQ(Live(), before);
}

TEST_F(ReplayTest, AnErrorOfTheWorkPassesThrough) {
  for (int32_t i = 0; i < 6; ++i) {
    const bool wrong = i % 2 == 1;
    auto work = [&] {
      Step(Tokens(5, i));
      CheckShape(!wrong, "[test] wrong");
    };
    if (wrong) {
      EXPECT_THROW(replay_->Run(5, work), ShapeError);
    } else {
      replay_->Run(5, work);
    }
    Check(Tokens(5, i), fmt::format("step {}", i));
  }
}

// …also behind a wait, when a part of the step runs on the device already.
TEST_F(ReplayTest, AnErrorBehindAWaitPassesThrough) {
  for (int32_t i = 0; i < 6; ++i) {
    const bool wrong = i == 1 || i == 4;  // as it is captured, and as it is replayed
    Tensor y;
    auto work = [&] {
      y = Step(Tokens(5, i));
      ctx_.stream().Synchronize();
      y = Step(Tokens(5, i + 1));
      CheckShape(!wrong, "[test] wrong");
    };
    if (wrong) {
      EXPECT_THROW(replay_->Run(5, work), ShapeError);
    } else {
      replay_->Run(5, work);
      ExpectSameBits(y, Step(Tokens(5, i + 1)), fmt::format("step {}", i));
    }
  }
  ExpectStats(1, 2);
}

TEST_F(ReplayTest, TheNumberOfGraphsIsBounded) {
  replay_ = runtime::MakeReplay(ctx_.allocator(), 4);
  const bool cpu = ctx_.device().is_cpu();
  auto replays = [&](int64_t key, int segments) {
    const int64_t before = replay_->stats().replayed;
    Tensor y;
    replay_->Run(key, [&] {
      for (int s = 0; s < segments; ++s) {
        y = Step(Tokens(5, s));
        ctx_.stream().Synchronize();
      }
    });
    ExpectSameBits(y, Step(Tokens(5, segments - 1)), fmt::format("key {}", key));
    return replay_->stats().replayed > before;
  };
  for (int64_t key : {1, 2, 3}) {
    for (int i = 0; i < 3; ++i) EXPECT_EQ(replays(key, 2), !cpu && i == 2);
    if (key == 2) {
      EXPECT_EQ(replays(1, 2), !cpu) << "there is room for both";
    }
  }
  EXPECT_EQ(replays(1, 2), !cpu);
  EXPECT_FALSE(replays(2, 2)) << "run longest ago, it made room for the third";
  EXPECT_EQ(replay_->PaddedRows(100), cpu ? 100 : 112);
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(replays(4, 5)) << "more than there may be";
  EXPECT_EQ(replay_->PaddedRows(100), 100) << "of no use now";
  EXPECT_EQ(replays(1, 2), !cpu) << "what cannot be recorded makes no room";
}

// A step with experts: which rows an expert gets is read by the host, and another at each step.
class RoutedReplayTest : public ReplayTest {
 protected:
  static constexpr int64_t kExperts = 4, kTopK = 2;

  Tensor Routed(const std::vector<int32_t>& tokens, bool declared) {
    Tensor x = Embedding(ctx_, table_, tokens);
    const RouterConfig config{.experts = kExperts, .top_k = kTopK};
    const Routing routing = Route(ctx_, Linear(ctx_, x, gate_, nullptr), nullptr, config);
    const Permutation permutation = MakePermutation(routing.index_TK, kTopK, kExperts);
    const std::vector<int64_t>& offset_E = permutation.offset_E;
    choices_.insert(offset_E);
    Tensor rows = Permute(ctx_, x, permutation);
    {
      std::optional<runtime::Unrecorded> apart;
      if (declared) apart.emplace(ctx_.stream());
      rows = GroupedLinear(ctx_, rows, experts_, offset_E);
      // As long as the choices make it, also longer than when the step was measured.
      Embedding(ctx_, table_, std::vector<int32_t>(static_cast<size_t>(99 * offset_E[1])));
    }
    return Linear(ctx_, Unpermute(ctx_, rows, routing.weight_TK, permutation), w_, nullptr);
  }
  void CheckRouted(int32_t i, bool declared = true) {
    const std::vector<int32_t> tokens = Tokens(5, i);
    Tensor y;
    replay_->Run(5, [&] { y = Routed(tokens, declared); });
    ExpectSameBits(y, Routed(tokens, declared), fmt::format("step {}", i));
  }
  void ExpectParts() {
    EXPECT_EQ(replay_->stats().segments, 3 * replay_->stats().replayed);
    EXPECT_EQ(replay_->stats().apart, replay_->stats().replayed);
  }

  Tensor gate_ = Random(ctx_, {kExperts, kDim}, DType::kF32, 4);
  Tensor experts_ = Random(ctx_, {kExperts, kDim, kDim}, DType::kF32, 5);
  std::set<std::vector<int64_t>> choices_;  // rows of each expert that there were
};

TEST_F(RoutedReplayTest, OtherChoicesAtEachStepAreReplayed) {
  for (int32_t i = 0; i < 9; ++i) CheckRouted(i);
  EXPECT_GE(choices_.size(), 5u);
  ExpectStats(1, 7);
  ExpectParts();
}

TEST_F(RoutedReplayTest, OtherAddressesAreRecordedAnewWhereTheyAreRecorded) {
  std::vector<Tensor> kept;
  for (int32_t i = 0; i < 12; ++i) {
    Tensor& moved = i == 4 ? gate_ : experts_;
    if (i == 4 || i == 9) {
      kept.push_back(moved);
      moved = Random(ctx_, moved.shape(), DType::kF32, static_cast<uint64_t>(20 + i));
    }
    CheckRouted(i);
  }
  // The router's product is recorded, the experts' products are made anew each time.
  ExpectStats(2, 2 + 6);
  ExpectParts();
}

TEST_F(RoutedReplayTest, MemoryComesBackInTheMiddleOfAStep) {
  const int64_t before = Live();
  for (int32_t i = 0; i < 6; ++i) CheckRouted(i);
  replay_.reset();
  ctx_.stream().Synchronize();
  EXPECT_EQ(Live(), before);
}

// What differs and does not say so costs graphs and no bits.
TEST_F(RoutedReplayTest, UndeclaredChoicesLeaveTheBits) {
  for (int32_t i = 0; i < 24; ++i) CheckRouted(i, false);
  EXPECT_LE(replay_->stats().recorded, 12);
  EXPECT_EQ(replay_->stats().apart, 0);
}

TEST_F(ReplayTest, RowsArePaddedByAQuarterAtMost) {
  int64_t sizes = 0, last = 0;
  for (int64_t rows = 1; rows <= 1024; ++rows) {
    const int64_t padded = replay_->PaddedRows(rows);
    EXPECT_GE(padded, rows);
    EXPECT_LE(4 * padded, 5 * rows);
    sizes += padded != last;
    last = padded;
  }
  EXPECT_EQ(sizes, ctx_.device().is_cpu() ? 1024 : 36);
}

}  // namespace
}  // namespace hone::kernels::testing
