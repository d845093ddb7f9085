// The likeliest tokens against a softmax in double.
#include "kernels/sampling/likeliest.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/tensors.h"

namespace hone::kernels {
namespace {

TEST(Likeliest, OrderAndLogProbabilities) {
  const std::vector<double> z = {0.5, 2.0, -1.0, 2.0, 1.25, -30.0};
  for (double temperature : {0.0, 0.5, 1.0, 2.0}) {
    const double t = temperature == 0 ? 1 : temperature;
    double sum = 0;
    for (double v : z) sum += std::exp(v / t);
    Context ctx;
    Tensor row = ctx.Empty({1, 6}, DType::kF32);
    for (size_t i = 0; i < z.size(); ++i) row.data<float>()[i] = static_cast<float>(z[i]);
    const auto top = Likeliest(row, temperature, 4);
    ASSERT_EQ(top.size(), 4u);
    const int32_t order[] = {1, 3, 4, 0};  // equal ones by id
    for (size_t i = 0; i < top.size(); ++i) {
      EXPECT_EQ(top[i].token, order[i]);
      EXPECT_NEAR(top[i].logp, z[static_cast<size_t>(order[i])] / t - std::log(sum), 1e-6);
    }
    // The bits that Sample records.
    const SamplingParams params{temperature, 1, 1};
    const double draw = 0.3;
    const auto drawn = Sample(ctx, row, {&params, 1}, {&draw, 1});
    EXPECT_EQ(drawn[0].token, top[0].token);
    EXPECT_EQ(drawn[0].logp, top[0].logp);
    EXPECT_EQ(Likeliest(row, temperature, 20).size(), z.size());
    EXPECT_TRUE(Likeliest(row, temperature, 0).empty());
  }
}

}  // namespace
}  // namespace hone::kernels
