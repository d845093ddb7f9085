// ranks: 2 4
#include "parallel/expert_dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

constexpr int64_t kExperts = 8, kWidth = 3;

// How many rows source rank s has for expert e: uneven, some none; nothing at all from rank 1 in
// mode 1, everything to the last expert in mode 2.
int64_t RowsFor(int mode, int s, int64_t e) {
  if (mode == 1 && s == 1) return 0;
  if (mode == 2) return e == kExperts - 1 ? 5 + s : 0;
  return (3 * e + 5 * s) % 4;
}

float RowValue(int s, int64_t e, int64_t i, int64_t d) {
  return static_cast<float>(1000 * s + 100 * e + 10 * i + d);
}

struct Source {
  std::vector<int64_t> offset_E = {0};
  Tensor rows_RD;
};
Source MakeSource(Context& ctx, int mode, int s) {
  Source source;
  std::vector<float> values;
  for (int64_t e = 0; e < kExperts; ++e) {
    source.offset_E.push_back(source.offset_E.back() + RowsFor(mode, s, e));
    for (int64_t i = 0; i < RowsFor(mode, s, e); ++i) {
      for (int64_t d = 0; d < kWidth; ++d) values.push_back(RowValue(s, e, i, d));
    }
  }
  source.rows_RD = ctx.Empty({source.offset_E.back(), kWidth}, DType::kF32);
  std::copy(values.begin(), values.end(), source.rows_RD.data<float>());
  return source;
}

TEST(ExpertDispatcher, RowsArriveByExpertThenSourceAndReturnToTheirPlaces) {
  OnRanks({1, 2, 4, 8}, [](const GroupPtr& ep) {
    Context ctx;
    ExpertDispatcher dispatcher(ep, kExperts);
    int64_t local = kExperts / ep->size();
    EXPECT_EQ(dispatcher.local_experts(), local);
    EXPECT_EQ(dispatcher.first_expert(), local * ep->rank());
    for (int mode : {0, 1, 2}) {
      Source source = MakeSource(ctx, mode, ep->rank());
      ExpertDispatcher::Plan plan = dispatcher.MakePlan(source.offset_E);
      Tensor there = dispatcher.Dispatch(ctx, source.rows_RD, plan).Finish();

      std::vector<float> expected;
      std::vector<int64_t> offset = {0};
      for (int64_t e = dispatcher.first_expert(); e < dispatcher.first_expert() + local; ++e) {
        offset.push_back(offset.back());
        for (int s = 0; s < ep->size(); ++s) {
          offset.back() += RowsFor(mode, s, e);
          for (int64_t i = 0; i < RowsFor(mode, s, e); ++i) {
            for (int64_t d = 0; d < kWidth; ++d) expected.push_back(RowValue(s, e, i, d));
          }
        }
      }
      EXPECT_EQ(plan.local_offset, offset);
      EXPECT_EQ(plan.received, offset.back());
      EXPECT_EQ(there.shape(), (Shape{offset.back(), kWidth}));
      EXPECT_EQ(ToVector<float>(there), expected);

      // What the experts make of a row must reach the row's own place.
      Tensor made = ctx.Clone(there);
      for (int64_t i = 0; i < made.size(); ++i) made.data<float>()[i] = -2 * expected[i];
      Tensor back = dispatcher.Combine(ctx, made, plan).Finish();
      std::vector<float> home = ToVector<float>(source.rows_RD);
      for (float& v : home) v *= -2;
      EXPECT_EQ(back.shape(), source.rows_RD.shape());
      EXPECT_EQ(ToVector<float>(back), home);
    }
  });
}

TEST(ExpertDispatcher, ExchangesOverlap) {
  OnRanks({2, 4}, [](const GroupPtr& ep) {
    Context ctx;
    ExpertDispatcher dispatcher(ep, kExperts);
    Source a = MakeSource(ctx, 0, ep->rank()), b = MakeSource(ctx, 2, ep->rank());
    auto plan_a = dispatcher.MakePlan(a.offset_E), plan_b = dispatcher.MakePlan(b.offset_E);
    auto there_a = dispatcher.Dispatch(ctx, a.rows_RD, plan_a);
    auto there_b = dispatcher.Dispatch(ctx, b.rows_RD, plan_b);
    Tensor rows_b = there_b.Finish();
    auto back_b = dispatcher.Combine(ctx, rows_b, plan_b);
    auto back_a = dispatcher.Combine(ctx, there_a.Finish(), plan_a);
    EXPECT_EQ(ToVector<float>(back_a.Finish()), ToVector<float>(a.rows_RD));
    EXPECT_EQ(ToVector<float>(back_b.Finish()), ToVector<float>(b.rows_RD));
  });
}

TEST(ExpertDispatcher, OneRankMovesNothing) {
  Context ctx;
  ExpertDispatcher dispatcher(MakeSingleGroup(), kExperts);
  Source source = MakeSource(ctx, 0, 0);
  auto plan = dispatcher.MakePlan(source.offset_E);
  EXPECT_EQ(plan.local_offset, source.offset_E);
  EXPECT_EQ(plan.received, source.rows_RD.dim(0));
  Tensor there = dispatcher.Dispatch(ctx, source.rows_RD, plan).Finish();
  EXPECT_EQ(there.raw(), source.rows_RD.raw());
  EXPECT_EQ(dispatcher.Combine(ctx, there, plan).Finish().raw(), there.raw());
}

TEST(ExpertDispatcher, ExpertsThatDoNotSplitAreRefused) {
  OnRanks({4}, [](const GroupPtr& ep) {
    try {
      ExpertDispatcher dispatcher(ep, 6);
      ADD_FAILURE() << "accepted";
    } catch (const ConfigError& error) {
      EXPECT_STREQ(error.what(), "[expert_dispatcher] 6 experts do not split over ep = 4");
    }
  });
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
