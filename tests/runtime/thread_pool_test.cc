#include "runtime/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace hone::runtime {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, CoversEachIndexOnceInRangesOfTheGrain) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t grain : {1, 3, 64, 5000}) {
      std::vector<std::atomic<int>> hits(n);
      std::atomic<bool> short_range = false;
      pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
        if (end - begin < grain && end != n) short_range = true;
        for (int64_t i = begin; i < end; ++i) ++hits[i];
      });
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(hits[i], 1) << i << " of " << n;
      EXPECT_FALSE(short_range);
    }
  }
}

TEST_P(ThreadPoolTest, RethrowsAndGoesOn) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.ParallelFor(100, 1,
                                  [](int64_t begin, int64_t end) {
                                    if (begin <= 50 && 50 < end) throw std::runtime_error("50");
                                  }),
                 std::runtime_error);
    std::atomic<int64_t> sum = 0;
    pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum += i;
    });
    EXPECT_EQ(sum, 4950);
  }
}

TEST_P(ThreadPoolTest, NestedCallsRunSerially) {
  ThreadPool pool(GetParam());
  std::atomic<int> outer_and_inner = 0;
  std::atomic<bool> moved = false;
  pool.ParallelFor(8, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      auto thread = std::this_thread::get_id();
      pool.ParallelFor(8, 1, [&](int64_t inner_begin, int64_t inner_end) {
        if (std::this_thread::get_id() != thread) moved = true;
        outer_and_inner += static_cast<int>(inner_end - inner_begin);
      });
    }
  });
  EXPECT_EQ(outer_and_inner, 64);
  EXPECT_FALSE(moved);
}

TEST_P(ThreadPoolTest, ManyShortLoops) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(64);
  for (int round = 0; round < 3000; ++round) {
    pool.ParallelFor(64, 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] += i;
    });
  }
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(values[i], 3000 * i);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 5));

}  // namespace
}  // namespace hone::runtime
