// ranks: 2 4
#include "parallel/comm/process_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <ctime>
#include <thread>

#include "parallel/comm/mpi_engine.h"
#include "runtime/context.h"
#include "runtime/error.h"
#include "tests/parallel/ranks.h"

namespace hone::parallel {
namespace {

using testing::HasSubstr;

const std::vector<int> kSizes = {1, 2, 3, 4, 8};

// What rank `rank` brings: values over many orders of magnitude, so that another order of additions
// shows.
template <class T>
std::vector<T> Values(int rank, int64_t n, uint64_t seed) {
  std::vector<T> values(n);
  uint64_t state = (seed << 20) + static_cast<uint64_t>(rank) * 977 + 1;
  for (T& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    double scale = static_cast<double>(int64_t{1} << (state >> 59));
    double fraction = static_cast<double>(state >> 20 & 0xffffffff) / 4294967296.0;
    value = static_cast<T>(static_cast<Acc<T>>((fraction - 0.3) * scale));
  }
  return values;
}

template <class T>
Tensor FromVector(const std::vector<T>& values) {
  Context ctx;
  Tensor t = ctx.Empty({static_cast<int64_t>(values.size())}, DTypeOf<T>::value);
  std::copy(values.begin(), values.end(), t.data<T>());
  return t;
}

// Rank 0's value, plus rank 1's, …: from left to right, rounded to T once at the end.
template <class T>
std::vector<T> SumInRankOrder(int ranks, int64_t n, uint64_t seed) {
  std::vector<std::vector<T>> all;
  for (int r = 0; r < ranks; ++r) all.push_back(Values<T>(r, n, seed));
  std::vector<T> sum(n);
  for (int64_t i = 0; i < n; ++i) {
    Acc<T> acc = static_cast<Acc<T>>(all[0][i]);
    for (int r = 1; r < ranks; ++r) acc += static_cast<Acc<T>>(all[r][i]);
    sum[i] = static_cast<T>(acc);
  }
  return sum;
}

template <class T>
void ExpectBits(const Tensor& actual, const std::vector<T>& expected) {
  std::vector<T> values = ToVector<T>(actual);
  ASSERT_EQ(values.size(), expected.size());
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(std::memcmp(&values[i], &expected[i], sizeof(T)), 0) << "element " << i;
  }
}

template <class T>
void CheckSums(const GroupPtr& group) {
  for (int64_t n : {1, 5, 1000, 70001}) {
    Tensor all = FromVector(Values<T>(group->rank(), n, n));
    group->AllReduce(all)->Wait();
    ExpectBits(all, SumInRankOrder<T>(group->size(), n, n));

    int64_t total = n * group->size();
    Tensor input = FromVector(Values<T>(group->rank(), total, n + 1));
    Tensor output = FromVector(std::vector<T>(n));
    group->ReduceScatter(input, output)->Wait();
    std::vector<T> sum = SumInRankOrder<T>(group->size(), total, n + 1);
    ExpectBits(output, std::vector<T>(sum.begin() + n * group->rank(),
                                      sum.begin() + n * (group->rank() + 1)));
  }
}

TEST(ProcessGroup, SumsAreInRankOrderToTheBit) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    CheckSums<float>(group);
    CheckSums<double>(group);
    CheckSums<BF16>(group);
  });
}

TEST(ProcessGroup, BFloat16IsRoundedOnce) {
  // 256 + 1 + 1 is 258; rounded after each addition it would stay 256.
  OnRanks({3, 4}, [](const GroupPtr& group) {
    float mine = group->rank() == 0 ? 256.f : group->rank() < 3 ? 1.f : 0.f;
    Tensor t = FromVector(std::vector<BF16>{BF16(mine)});
    group->AllReduce(t)->Wait();
    EXPECT_EQ(ToDoubles(t)[0], 258.0);
  });
}

TEST(ProcessGroup, MaximumAndIntegers) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    int64_t rank = group->rank(), size = group->size();
    Tensor sum = FromVector(std::vector<int64_t>{rank, int64_t{1} << 40});
    Tensor max = FromVector(std::vector<double>{-1.0 * rank, 1.0 * rank});
    group->AllReduce(sum)->Wait();
    group->AllReduce(max, ReduceOp::kMax)->Wait();
    EXPECT_EQ(ToVector<int64_t>(sum), (std::vector<int64_t>{size * (size - 1) / 2, size << 40}));
    EXPECT_EQ(ToDoubles(max), (std::vector<double>{0.0, 1.0 * (size - 1)}));
  });
}

TEST(ProcessGroup, GatherBroadcast) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    int rank = group->rank(), size = group->size();
    for (int64_t n : {1, 3000}) {
      Tensor out = FromVector(std::vector<float>(n * size));
      group->AllGather(FromVector(Values<float>(rank, n, 7)), out)->Wait();
      std::vector<float> expected;
      for (int r = 0; r < size; ++r) {
        for (float v : Values<float>(r, n, 7)) expected.push_back(v);
      }
      ExpectBits(out, expected);
      Tensor t = FromVector(Values<float>(rank, n, 8));
      group->Broadcast(t, size - 1)->Wait();
      ExpectBits(t, Values<float>(size - 1, n, 8));
    }
  });
}

TEST(ProcessGroup, AllToAllMovesUnevenRows) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    int rank = group->rank(), size = group->size();
    auto rows = [](int from, int to) -> int64_t { return (from + 2 * to) % 4; };
    auto value = [](int from, int to, int64_t row) { return from * 100 + to * 10 + row; };
    std::vector<int64_t> send_rows, recv_rows;
    std::vector<int64_t> out, expected;
    for (int peer = 0; peer < size; ++peer) {
      send_rows.push_back(rows(rank, peer));
      recv_rows.push_back(rows(peer, rank));
      for (int64_t i = 0; i < rows(rank, peer); ++i) out.insert(out.end(), 2, value(rank, peer, i));
      for (int64_t i = 0; i < rows(peer, rank); ++i) {
        expected.insert(expected.end(), 2, value(peer, rank, i));
      }
    }
    Context ctx;
    int64_t in_rows = static_cast<int64_t>(expected.size()) / 2;
    Tensor recv = ctx.Empty({in_rows, 2}, DType::kI64);
    Tensor send = FromVector(out).Reshape({static_cast<int64_t>(out.size()) / 2, 2});
    group->AllToAll(send, send_rows, recv, recv_rows)->Wait();
    ExpectBits(recv, expected);
  });
}

TEST(ProcessGroup, MessagesMatchByTagAndKeepTheirOrder) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    int rank = group->rank(), size = group->size();
    int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    auto message = [](int from, int tag, int nth) { return std::vector<int32_t>{from, tag, nth}; };
    for (int nth : {0, 1}) {
      for (int tag : {5, 9}) group->Send(FromVector(message(rank, tag, nth)), next, tag)->Wait();
    }
    std::vector<Tensor> in;
    std::vector<WorkPtr> works;
    for (int tag : {9, 5, 5, 9}) {
      in.push_back(FromVector(message(-1, -1, -1)));
      works.push_back(group->Receive(in.back(), previous, tag));
    }
    for (auto& work : works) work->Wait();
    ExpectBits(in[0], message(previous, 9, 0));
    ExpectBits(in[1], message(previous, 5, 0));
    ExpectBits(in[2], message(previous, 5, 1));
    ExpectBits(in[3], message(previous, 9, 1));
  });
}

TEST(ProcessGroup, SendingWaitsForNobodyAndLeavesTheTensorFree) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    int peer = group->size() - 1 - group->rank();
    constexpr int64_t kMany = 1'500'000;  // far beyond what MPI sends eagerly
    Tensor mine = FromVector(Values<float>(group->rank(), kMany, 3));
    group->Send(mine, peer, 1)->Wait();
    std::fill_n(mine.data<float>(), kMany, -1.f);
    group->Barrier();
    Tensor theirs = FromVector(std::vector<float>(kMany));
    group->Receive(theirs, peer, 1)->Wait();
    ExpectBits(theirs, Values<float>(peer, kMany, 3));
  });
}

TEST(ProcessGroup, ManyOperationsAtOnceInAnyOrderOfWaiting) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    std::vector<Tensor> tensors;
    std::vector<WorkPtr> works;
    for (int i = 0; i < 40; ++i) {
      int64_t n = i % 3 == 0 ? 9000 : 10 + i;
      tensors.push_back(FromVector(Values<float>(group->rank(), n, 100 + i)));
      works.push_back(i % 5 == 4 ? group->Broadcast(tensors.back(), 0)
                                 : group->AllReduce(tensors.back()));
    }
    for (int i = 39; i >= 0; --i) {
      works[i]->Wait();
      works[i]->Wait();
      EXPECT_TRUE(works[i]->Done());
      int64_t n = tensors[i].size();
      ExpectBits(tensors[i], i % 5 == 4 ? Values<float>(0, n, 100 + i)
                                        : SumInRankOrder<float>(group->size(), n, 100 + i));
    }
  });
}

TEST(ProcessGroup, SplitsBySomeColorInOrderOfKey) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    int rank = group->rank(), size = group->size();
    // Odd and even ranks, the last one first; rank 0 takes no part.
    GroupPtr half = group->Split(rank == 0 ? -1 : rank % 2, -rank, "half");
    GroupPtr everyone = group->Split(3, rank, "everyone");
    ASSERT_EQ(half == nullptr, rank == 0);
    // Work of both groups and their parent overlaps.
    Tensor a = FromVector(std::vector<double>{1.0 * rank});
    Tensor b = FromVector(std::vector<double>{1.0 * rank});
    WorkPtr whole = group->AllReduce(a);
    WorkPtr copy = everyone->AllReduce(b);
    if (half != nullptr) {
      std::vector<int> members;
      for (int r = size - 1; r > 0; --r) {
        if (r % 2 == rank % 2) members.push_back(r);
      }
      ASSERT_EQ(half->size(), static_cast<int>(members.size()));
      EXPECT_EQ(members[half->rank()], rank);
      EXPECT_EQ(half->name(), "half");
      std::vector<std::string> names = half->AllGatherBytes(std::to_string(rank));
      for (int i = 0; i < half->size(); ++i) EXPECT_EQ(names[i], std::to_string(members[i]));
      GroupPtr alone = half->Split(half->rank(), 0, "alone");
      EXPECT_EQ(alone->size(), 1);
    }
    copy->Wait();
    whole->Wait();
    EXPECT_EQ(ToDoubles(a)[0], size * (size - 1) / 2.0);
    EXPECT_EQ(ToDoubles(b)[0], size * (size - 1) / 2.0);
  });
}

// What the standard promises; bounds of Intel MPI, of Open MPI over UCX and over its own
// transports.
TEST(MpiEngine, SharesTheBitsOfTagsAmongGroupsAndMessages) {
  for (auto [bound, group, payload] :
       {std::array{32767, 6, 9}, std::array{(1 << 20) - 1, 7, 13},
        std::array{(1 << 23) - 1, 10, 13}, std::array{2147483647, 14, 16}}) {
    const TagBits bits = ShareTagBits(bound);
    EXPECT_EQ(bits.group, group) << bound;
    EXPECT_EQ(bits.payload, payload) << bound;
  }
  EXPECT_EQ(ShareTagBits((1 << 23) - 2).payload + ShareTagBits((1 << 23) - 2).group, 22);
}

TEST(ProcessGroup, GroupsOfTheSameRanksDoNotMix) {
  OnRanks({2, 4}, [](const GroupPtr& group) {
    GroupPtr groups[] = {group->Split(0, group->rank(), "a"), group->Split(0, group->rank(), "b"),
                         group->Split(0, group->rank(), "c")};
    int peer = group->size() - 1 - group->rank();
    // Each rank begins with another group.
    Tensor sums[3], messages[3];
    std::vector<WorkPtr> works;
    for (int i = 0; i < 3; ++i) {
      int g = (i + group->rank()) % 3;
      sums[g] = FromVector(std::vector<double>{std::pow(10.0, g)});
      messages[g] = FromVector(std::vector<int32_t>{-1});
      works.push_back(groups[g]->AllReduce(sums[g]));
      groups[g]->Send(FromVector(std::vector<int32_t>{g}), peer, 0);
      works.push_back(groups[g]->Receive(messages[g], peer, 0));
    }
    for (const WorkPtr& work : works) work->Wait();
    for (int g = 0; g < 3; ++g) {
      EXPECT_EQ(ToDoubles(sums[g])[0], group->size() * std::pow(10.0, g));
      EXPECT_EQ(ToDoubles(messages[g])[0], g);
    }
  });
}

TEST(ProcessGroup, GathersBytesOfAnyLength) {
  OnRanks(kSizes, [](const GroupPtr& group) {
    auto text = [](int r) {
      std::string s = std::string("a\0b", 3) + std::to_string(r);
      s.resize(r % 2 == 0 ? r : 1014 + r * 700, static_cast<char>('a' + r));
      return s;
    };
    for (int round = 0; round < 3; ++round) {
      std::vector<std::string> all = group->AllGatherBytes(text(group->rank()));
      ASSERT_EQ(static_cast<int>(all.size()), group->size());
      for (int r = 0; r < group->size(); ++r) EXPECT_EQ(all[r], text(r));
    }
  });
}

TEST(ProcessGroup, RendezvousRunsBesideTheGroupItCameFrom) {
  OnRanks({2, 4}, [](const GroupPtr& group) {
    auto rendezvous = MakeRendezvous(group);
    std::thread background([&] {
      for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(rendezvous->AllGather(std::to_string(rendezvous->rank()))[1], "1");
      }
    });
    for (int i = 0; i < 20; ++i) {
      Tensor t = FromVector(std::vector<float>{1.f});
      group->AllReduce(t)->Wait();
      EXPECT_EQ(ToDoubles(t)[0], group->size());
    }
    background.join();
  });
}

TEST(ProcessGroup, ArgumentsThatDoNotFitAreRefused) {
  OnRanks({2, 4}, [](const GroupPtr& group) {
    Tensor five = FromVector(std::vector<float>(5)), two = FromVector(std::vector<float>(2));
    EXPECT_THROW(group->ReduceScatter(five, two), ShapeError);
    EXPECT_THROW(group->AllGather(two, five), ShapeError);
    EXPECT_THROW(group->AllToAll(two, {1, 0}, two, {1, 1}), ShapeError);
    EXPECT_THROW(group->Send(two, group->size(), 0), CommError);
    EXPECT_THROW(group->Send(two, 0, -1), CommError);
  });
}

TEST(ProcessGroup, AMessageOfAnotherSizeIsAnError) {
  OnRanks({2}, [](const GroupPtr& group) {
    for (int64_t bytes : {8, 32}) {
      group->Send(FromVector(std::vector<uint8_t>(bytes)), 1 - group->rank(), 2);
      Tensor in = FromVector(std::vector<uint8_t>(16));
      EXPECT_THROW(group->Receive(in, 1 - group->rank(), 2)->Wait(), CommError);
    }
  });
}

TEST(ProcessGroup, AWaitingRankSleeps) {
  OnRanks({2, 4}, [](const GroupPtr& group) {
    group->Barrier();
    if (group->rank() == 0) {
      timespec begin{}, end{};
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
      Tensor in = FromVector(std::vector<float>(1));
      group->Receive(in, 1, 0)->Wait();
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
      double used = static_cast<double>(end.tv_sec - begin.tv_sec) +
                    1e-9 * static_cast<double>(end.tv_nsec - begin.tv_nsec);
      EXPECT_LT(used, 0.1) << "CPU seconds during a wait of 0.6";
    } else if (group->rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(600));
      group->Send(FromVector(std::vector<float>(1)), 0, 0);
    }
  });
}

TEST(StartedByMpi, ReadsTheEnvironment) { EXPECT_EQ(StartedByMpi(), MpiWorld() != nullptr); }

// What a rank that fails or stays away does to the others: threads only, since a process that fails
// ends its mpirun. process_group_timeout_test has the timeout under MPI.

template <class E>
std::string MessageOf(const std::function<void()>& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of this type was thrown";
  return "";
}

TEST(ThreadRanks, TheOthersFailWithARankThatFails) {
  std::string others[3];
  std::string first = MessageOf<DataError>([&] {
    RunThreadRanks(3, [&](const GroupPtr& group) {
      if (group->rank() == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        throw DataError("[test] broken line");
      }
      others[group->rank()] = MessageOf<CommError>([&] {
        Tensor t = FromVector(std::vector<float>(1));
        if (group->rank() == 0) group->AllReduce(t)->Wait();
        group->Receive(t, 1, 4)->Wait();
      });
    });
  });
  EXPECT_EQ(first, "[test] broken line");
  EXPECT_EQ(others[0], "[all_reduce] group world, rank 0 of 3: rank 1 failed: [test] broken line");
  EXPECT_EQ(others[2], "[receive] group world, rank 2 of 3: rank 1 failed: [test] broken line");
}

TEST(ThreadRanks, OtherOperationsAtTheSamePlaceAreAnErrorOnBoth) {
  RunThreadRanks(2, [](const GroupPtr& group) {
    Tensor t = FromVector(std::vector<float>(4));
    std::string message = MessageOf<CommError>([&] {
      if (group->rank() == 0) group->AllReduce(t)->Wait();
      group->Broadcast(t, 0)->Wait();
    });
    EXPECT_THAT(message, HasSubstr("broadcast"));
    EXPECT_THAT(message, HasSubstr("all_reduce sum f32[4]"));
  });
}

}  // namespace
}  // namespace hone::parallel

int main(int argc, char** argv) { return hone::parallel::RunRankTests(argc, argv); }
