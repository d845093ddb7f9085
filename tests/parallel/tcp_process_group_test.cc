// Ranks that meet over TCP: the contract of process_group.h, who is missing, and strangers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <barrier>
#include <cstdlib>
#include <thread>

#include "parallel/comm/process_group.h"
#include "parallel/comm/tcp_bootstrap.h"
#include "parallel/comm/tcp_hub.h"
#include "parallel/comm/tcp_socket.h"
#include "runtime/context.h"
#include "runtime/error.h"

namespace hone::parallel {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;

int FreePort() { return PortOf(ListenOn(0)); }

TcpOptions Options(int rank, int size, int port) {
  return {.rank = rank, .size = size, .host = "localhost", .port = port, .token = "job 7"};
}

// body(group) on `size` threads that know nothing of each other but the address.
void OnTcpRanks(int size, const std::function<void(GroupPtr)>& body,
                milliseconds deadline = std::chrono::seconds(30)) {
  int port = FreePort();
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([=, &body] {
      try {
        body(MakeTcpGroup(Options(r, size, port), {.deadline = deadline}));
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << r << ": " << error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

template <class Call>
std::string ErrorOf(Call call) {
  try {
    call();
  } catch (const CommError& error) {
    return error.what();
  }
  return "no error";
}

template <class T>
Tensor Vector(const std::vector<T>& values) {
  static Context* ctx = new Context;  // tensors outlive threads
  Tensor t = ctx->Empty({static_cast<int64_t>(values.size())}, DTypeOf<T>::value);
  std::copy(values.begin(), values.end(), t.template data<T>());
  return t;
}

TEST(TcpGroup, ReducesInRankOrder) {
  OnTcpRanks(4, [](const GroupPtr& group) {
    // Left to right: ((1e8 + 1) − 1e8) + 1 = 1 in f32; any other order gives 0 or 2.
    float mine[] = {1e8f, 1.f, -1e8f, 1.f};
    Tensor sum = Vector<float>({mine[group->rank()]});
    group->AllReduce(sum)->Wait();
    EXPECT_EQ(ToDoubles(sum)[0], 1.0);

    Tensor all = Vector<int32_t>({1, 20, 300, 4000});
    Tensor own = Vector<int32_t>({0});
    group->ReduceScatter(all, own)->Wait();
    EXPECT_EQ(ToDoubles(own)[0], 4 * ToDoubles(all)[group->rank()]);
  });
}

TEST(TcpGroup, GathersBroadcastsAndExchangesRows) {
  OnTcpRanks(3, [](const GroupPtr& group) {
    int r = group->rank();
    Tensor all = Vector<int32_t>(std::vector<int32_t>(6));
    WorkPtr gather = group->AllGather(Vector<int32_t>({r, 10 + r}), all);
    Tensor root = Vector<int32_t>({r});
    WorkPtr broadcast = group->Broadcast(root, 2);
    broadcast->Wait();  // out of order
    gather->Wait();
    EXPECT_THAT(ToDoubles(all), ElementsAre(0, 10, 1, 11, 2, 12));
    EXPECT_EQ(ToDoubles(root)[0], 2);

    // Rank r sends p rows to rank p, each holding 10·r + p.
    std::vector<int64_t> send_rows = {0, 1, 2}, recv_rows(3, r);
    Tensor send = Vector<int32_t>({10 * r + 1, 10 * r + 2, 10 * r + 2});
    Tensor recv = Vector<int32_t>(std::vector<int32_t>(3 * r, -1));
    group->AllToAll(send, send_rows, recv, recv_rows)->Wait();
    std::vector<double> expected;
    for (int from = 0; from < 3; ++from) expected.insert(expected.end(), r, 10 * from + r);
    EXPECT_EQ(ToDoubles(recv), expected);
  });
}

TEST(TcpGroup, MessagesMatchByTag) {
  OnTcpRanks(2, [](const GroupPtr& group) {
    int peer = 1 - group->rank();
    group->Send(Vector<int32_t>({1}), peer, 5)->Wait();
    group->Send(Vector<int32_t>({2}), peer, 9)->Wait();
    group->Send(Vector<int32_t>({3}), peer, 5)->Wait();
    Tensor a = Vector<int32_t>({0}), b = Vector<int32_t>({0}), c = Vector<int32_t>({0});
    WorkPtr first = group->Receive(a, peer, 5), second = group->Receive(b, peer, 5);
    group->Receive(c, peer, 9)->Wait();
    second->Wait();
    first->Wait();
    EXPECT_EQ(ToDoubles(a)[0], 1);
    EXPECT_EQ(ToDoubles(b)[0], 3);
    EXPECT_EQ(ToDoubles(c)[0], 2);
  });
}

TEST(TcpGroup, SplitsByColorAndKey) {
  OnTcpRanks(4, [](const GroupPtr& world) {
    int r = world->rank();
    GroupPtr group = world->Split(r == 3 ? -1 : r % 2, -r, "dp");
    if (r == 3) {
      EXPECT_EQ(group, nullptr);
      return;
    }
    std::vector<std::string> all = group->AllGatherBytes(std::to_string(r));
    EXPECT_EQ(all, r == 1 ? std::vector<std::string>{"1"} : (std::vector<std::string>{"2", "0"}));
    EXPECT_EQ(group->name(), "dp");
  });
}

TEST(TcpGroup, ProcessesExchangeAnOpaqueBlob) {
  int port = FreePort();
  std::vector<pid_t> children;
  for (int r = 1; r < 4; ++r) {
    pid_t child = fork();
    if (child == 0) {
      int code = 1;
      try {
        auto group = MakeTcpGroup(Options(r, 4, port), {.deadline = std::chrono::seconds(30)});
        std::string blob = group->AllGatherBytes("")[0];
        code = blob == std::string("a\0b", 3) ? 0 : 2;
      } catch (const std::exception&) {
      }
      _exit(code);
    }
    children.push_back(child);
  }
  MakeTcpGroup(Options(0, 4, port), {.deadline = std::chrono::seconds(30)})
      ->AllGatherBytes(std::string("a\0b", 3));
  for (pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
}

TEST(TcpGroup, NamesWhoDidNotCome) {
  int port = FreePort();
  auto join = [&](int rank) {
    return ErrorOf([&] { MakeTcpGroup(Options(rank, 4, port), {.deadline = milliseconds(400)}); });
  };
  std::string of_two;
  std::thread two([&] { of_two = join(2); });
  EXPECT_EQ(join(0), "[all_gather_bytes] group world, rank 0 of 4: waited 0.4 s for rank 1, 3");
  two.join();
  EXPECT_EQ(of_two, "[all_gather_bytes] group world, rank 2 of 4: waited 0.4 s for rank 1, 3");
}

TEST(TcpGroup, SaysThatNobodyListens) {
  int port = FreePort();
  EXPECT_EQ(ErrorOf([&] { MakeTcpGroup(Options(1, 2, port), {.deadline = milliseconds(200)}); }),
            fmt::format("[tcp] nobody listens at localhost:{}; is rank 0 running there?", port));
}

TEST(TcpGroup, ARankThatLeavesIsNamed) {
  std::barrier told(2);  // else who is told first leaves as well, before the other is
  OnTcpRanks(3, [&](const GroupPtr& group) {
    if (group->rank() == 1) return;
    std::string gather = ErrorOf([&] { group->AllGatherBytes("x"); });
    told.arrive_and_wait();
    EXPECT_THAT(gather, HasSubstr("rank 1 has left"));
    Tensor t = Vector<float>({0});
    EXPECT_THAT(ErrorOf([&] { group->Receive(t, 1, 3)->Wait(); }), HasSubstr("rank"));
  });
}

TEST(TcpGroup, LateReceiveNamesPeerAndTag) {
  OnTcpRanks(
      2,
      [](const GroupPtr& group) {
        if (group->rank() == 0) {
          Tensor t = Vector<float>({0});
          EXPECT_EQ(ErrorOf([&] { group->Receive(t, 1, 6)->Wait(); }),
                    "[receive] group world, rank 0 of 2, tag 6: waited 0.3 s for rank 1");
        } else {
          std::this_thread::sleep_for(milliseconds(600));
        }
      },
      milliseconds(300));
}

TEST(TcpGroup, OperationsThatDifferAreNamed) {
  OnTcpRanks(2, [](const GroupPtr& group) {
    Tensor t = Vector<float>({1});
    WorkPtr work = group->rank() == 0 ? group->AllReduce(t) : group->Broadcast(t, 0);
    EXPECT_THAT(
        ErrorOf([&] { work->Wait(); }),
        HasSubstr(group->rank() == 0 ? "rank 1 is at broadcast" : "rank 0 is at all_reduce"));
  });
}

// Garbage, a hello with another token, and one that says nothing: none is counted as a rank, and
// none keeps the ranks waiting.
TEST(TcpGroup, StrangersAreTurnedAway) {
  int port = FreePort();
  GroupPtr groups[2];
  std::thread zero([&] { groups[0] = MakeTcpGroup(Options(0, 2, port)); });
  auto soon = TcpClock::now() + std::chrono::seconds(10);
  Socket silent = ConnectTo("localhost", port, soon);
  Socket garbage = ConnectTo("localhost", port, soon);
  std::string noise(100, '\xff');
  ASSERT_EQ(send(garbage.fd(), noise.data(), noise.size(), MSG_NOSIGNAL), 100);
  FrameHeader header;
  std::string bytes;
  EXPECT_FALSE(ReceiveFrame(garbage, &header, &bytes)) << "garbage was answered";

  TcpOptions other = Options(1, 2, port);
  other.token = "job 8";
  EXPECT_THAT(ErrorOf([&] { MakeTcpGroup(other, {.deadline = milliseconds(500)}); }),
              HasSubstr("turned this rank away"));
  groups[1] = MakeTcpGroup(Options(1, 2, port));
  zero.join();
  // A second rank 1 is a stranger too.
  EXPECT_THAT(ErrorOf([&] { MakeTcpGroup(Options(1, 2, port), {.deadline = milliseconds(500)}); }),
              HasSubstr("turned this rank away"));
  std::thread one([&] { EXPECT_EQ(groups[1]->AllGatherBytes("b").size(), 2u); });
  EXPECT_EQ(groups[0]->AllGatherBytes("a")[1], "b");
  one.join();
  groups[1] = nullptr;
}

TEST(TcpOptions, ComeFromTheEnvironment) {
  EXPECT_EQ(FirstNode("gpu[07-09,12],login"), "gpu07");
  EXPECT_EQ(FirstNode("gpu[3]"), "gpu3");
  EXPECT_EQ(FirstNode("a1,b[2-3]"), "a1");
  EXPECT_EQ(FirstNode("node9"), "node9");
  for (const char* name : {"HONE_MASTER", "HONE_RANK", "HONE_SIZE", "HONE_TOKEN"}) unsetenv(name);
  setenv("SLURM_NTASKS", "8", 1);
  setenv("SLURM_PROCID", "5", 1);
  setenv("SLURM_JOB_ID", "60123", 1);
  setenv("SLURM_STEP_ID", "0", 1);
  setenv("SLURM_STEP_NODELIST", "gpu[07-09]", 1);
  TcpOptions slurm = TcpOptionsFromEnvironment();
  EXPECT_EQ(slurm.rank, 5);
  EXPECT_EQ(slurm.size, 8);
  EXPECT_EQ(slurm.host, "gpu07");
  EXPECT_EQ(slurm.port, 12123);
  EXPECT_EQ(slurm.token, "60123.0");
  setenv("HONE_RANK", "8", 1);
  EXPECT_THROW(TcpOptionsFromEnvironment(), ConfigError);
  setenv("HONE_RANK", "2", 1);
  setenv("HONE_MASTER", "10.0.0.1:70000", 1);
  EXPECT_THROW(TcpOptionsFromEnvironment(), ConfigError);
  setenv("HONE_MASTER", "10.0.0.1:7000", 1);
  EXPECT_EQ(TcpOptionsFromEnvironment().host, "10.0.0.1");
  EXPECT_EQ(TcpOptionsFromEnvironment().port, 7000);
  EXPECT_EQ(TcpOptionsFromEnvironment().rank, 2);
}

}  // namespace
}  // namespace hone::parallel
