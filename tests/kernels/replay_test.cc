// emulated: descending random:1
// Steps that are replayed against steps that are run: the same bits, whatever changes between two.
#include "runtime/replay.h"

#include <functional>

#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"
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

TEST_F(ReplayTest, AStepThatWaitsForTheDeviceIsRunAsItIs) {
  for (int32_t i = 0; i < 4; ++i) {
    std::vector<double> y;
    replay_->Run(1, [&] { y = runtime::ToDoubles(Step(Tokens(5, i))); });
    EXPECT_EQ(y, runtime::ToDoubles(Step(Tokens(5, i))));
  }
  ExpectStats(0, 0);
  EXPECT_EQ(replay_->PaddedRows(100), 100) << "of no use now";
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
