// The pool against real helper processes: this program, started again by exec, is the helper. Its
// scorer judges as the product does, and misbehaves on a few verifier names that only it knows.
#include "rl/reward/verifier_pool.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "rl/reward/verifier_wire.h"
#include "runtime/error.h"

namespace hone::rl {
namespace {

using std::chrono::milliseconds;

std::string OpenDescriptors() {
  std::string list;
  for (int fd = 3; fd < 256; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0) list += std::to_string(fd) + " ";
  }
  return list;
}

RewardReply TestScore(const RewardRequest& request) {
  RewardReply reply;
  if (request.verifier == "hang") {
    for (;;) pause();
  } else if (request.verifier == "crash") {
    std::abort();
  } else if (request.verifier == "throw") {
    throw std::runtime_error("not an error of ours");
  } else if (request.verifier == "garbage") {
    [[maybe_unused]] ssize_t n = write(STDOUT_FILENO, "\xff\xff\xff\xff\xff", 5);
  } else if (request.verifier == "echo") {
    reply.outcome = Outcome::kCorrect;
    reply.detail = request.completion;
    reply.rewards["tokens"] = static_cast<double>(request.completion_tokens);
    reply.rewards[request.gold] = request.finished ? -0.5 : 1.5;
  } else if (request.verifier == "environment") {
    for (char** e = environ; *e != nullptr; ++e) reply.detail += std::string(*e) + "\n";
  } else if (request.verifier == "descriptors") {
    reply.detail = OpenDescriptors();
  } else if (request.verifier == "pid") {
    reply.detail = std::to_string(getpid());
  } else {
    return ScoreCompletion(request);
  }
  return reply;
}

RewardRequest Of(const std::string& verifier, const std::string& completion = "",
                 const std::string& gold = "") {
  RewardRequest request;
  request.verifier = verifier;
  request.completion = completion;
  request.gold = gold;
  return request;
}

std::map<uint64_t, RewardReply> Collect(VerifierPool& pool) {
  std::map<uint64_t, RewardReply> replies;
  auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (pool.pending() > 0 && std::chrono::steady_clock::now() < until) {
    for (auto& scored : pool.Poll(milliseconds(1000))) {
      EXPECT_TRUE(replies.emplace(scored.id, scored.reply).second)
          << "id " << scored.id << " twice";
    }
  }
  EXPECT_EQ(pool.pending(), 0);
  return replies;
}

RewardReply One(VerifierPool& pool, const RewardRequest& request) {
  pool.Submit(7, request);
  return Collect(pool)[7];
}

// Processes whose parent is this one.
std::set<int> Children() {
  std::set<int> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(entry.path() / "children");
    for (int pid; file >> pid;) children.insert(pid);
  }
  return children;
}

TEST(VerifierPool, ScoresAsTheFunctionDoes) {
  VerifierPool pool({.helpers = 3});
  std::map<uint64_t, RewardRequest> requests;
  for (uint64_t id = 0; id < 200; ++id) {
    RewardRequest r =
        Of("math", "<think>It is so.</think><answer>" + std::to_string(id % 7) + "</answer>",
           std::to_string(id % 5));
    r.language = "en";
    requests[id] = r;
    pool.Submit(id, r);
  }
  EXPECT_EQ(pool.pending(), 200);
  auto replies = Collect(pool);
  ASSERT_EQ(replies.size(), 200u);
  for (auto& [id, request] : requests) {
    RewardReply expected = ScoreCompletion(request);
    EXPECT_EQ(replies[id].outcome, expected.outcome);
    EXPECT_EQ(replies[id].rewards, expected.rewards);
    EXPECT_EQ(replies[id].detail, expected.detail);
  }
}

TEST(VerifierPool, CarriesAnyBytesAndSizes) {
  VerifierPool pool({.helpers = 1});
  std::string text;
  for (int i = 0; i < 3'000'000; ++i) text.push_back(static_cast<char>(i * 131 % 256));
  RewardRequest request = Of("echo", text, std::string("a\0\xff\xc3", 4));
  request.completion_tokens = int64_t{1} << 40;
  request.finished = false;
  RewardReply reply = One(pool, request);
  EXPECT_EQ(reply.outcome, Outcome::kCorrect);
  EXPECT_TRUE(reply.detail == text);
  EXPECT_EQ(reply.rewards.at("tokens"), 1099511627776.0);
  EXPECT_EQ(reply.rewards.at(request.gold), 1.5);
}

TEST(VerifierPool, AHangingRequestTimesOutAndTheOthersAreScored) {
  VerifierPool pool({.helpers = 2, .deadline = milliseconds(400)});
  for (uint64_t id = 0; id < 20; ++id) {
    pool.Submit(id, id == 3 || id == 11 ? Of("hang") : Of("echo", std::to_string(id)));
  }
  auto replies = Collect(pool);
  for (uint64_t id = 0; id < 20; ++id) {
    bool hung = id == 3 || id == 11;
    EXPECT_EQ(replies[id].outcome, hung ? Outcome::kTimeout : Outcome::kCorrect) << id;
    EXPECT_EQ(replies[id].detail, hung ? "no verdict after 400 ms" : std::to_string(id));
  }
  EXPECT_LE(Children().size(), 2u);
}

TEST(VerifierPool, ADyingHelperIsReplaced) {
  VerifierPool pool({.helpers = 1});
  std::string first = One(pool, Of("pid")).detail;
  EXPECT_EQ(One(pool, Of("pid")).detail, first);
  EXPECT_EQ(One(pool, Of("crash")).outcome, Outcome::kCrashed);
  EXPECT_EQ(One(pool, Of("throw")).outcome, Outcome::kCrashed);
  EXPECT_EQ(One(pool, Of("garbage")).outcome, Outcome::kCrashed);
  std::string last = One(pool, Of("pid")).detail;
  EXPECT_FALSE(last.empty());
  EXPECT_NE(last, first);
}

TEST(VerifierPool, AHelperKilledWhileIdleIsReplaced) {
  VerifierPool pool({.helpers = 1});
  std::string first = One(pool, Of("pid")).detail;
  ASSERT_EQ(kill(std::stoi(first), SIGKILL), 0);
  for (int i = 0; i < 4000 && Children().count(std::stoi(first)) > 0; ++i) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  RewardReply reply = One(pool, Of("echo", "still here"));
  EXPECT_EQ(reply.detail, "still here");
}

TEST(VerifierPool, AnErrorOfOursIsARefusal) {
  VerifierPool pool({.helpers = 1});
  RewardReply reply = One(pool, Of("no such verifier", "<answer>1</answer>", "1"));
  EXPECT_EQ(reply.outcome, Outcome::kRefused);
  EXPECT_NE(reply.detail.find("no such verifier"), std::string::npos) << reply.detail;
}

TEST(VerifierPool, HelpersHoldNothingOfTheParent) {
  setenv("HONE_TEST_SECRET", "do not tell", 1);
  int inheritable = dup(STDERR_FILENO);  // without CLOEXEC
  VerifierPool pool({.helpers = 1});
  EXPECT_EQ(One(pool, Of("environment")).detail.find("SECRET"), std::string::npos);
  EXPECT_EQ(One(pool, Of("descriptors")).detail, "");
  close(inheritable);
  unsetenv("HONE_TEST_SECRET");
}

TEST(VerifierPool, LeavesNoProcess) {
  {
    VerifierPool pool({.helpers = 3, .deadline = milliseconds(60'000)});
    for (uint64_t id = 0; id < 5; ++id) pool.Submit(id, Of("hang"));
    EXPECT_EQ(Children().size(), 3u);
  }
  EXPECT_EQ(Children().size(), 0u);
}

TEST(VerifierPool, IgnoresCtrlC) {
  VerifierPool pool({.helpers = 1});
  int helper = std::stoi(One(pool, Of("pid")).detail);
  kill(helper, SIGINT);
  kill(helper, SIGTERM);
  EXPECT_EQ(One(pool, Of("pid")).detail, std::to_string(helper));
}

// A helper stuck in its request dies with a parent that is killed.
TEST(VerifierPool, HelpersDieWithTheirParent) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  pid_t parent = fork();
  if (parent == 0) {
    VerifierPool pool({.helpers = 1, .deadline = milliseconds(60'000)});
    int helper = std::stoi(One(pool, Of("pid")).detail);
    pool.Submit(1, Of("hang"));
    std::this_thread::sleep_for(milliseconds(100));
    [[maybe_unused]] ssize_t n = write(pipe_ends[1], &helper, sizeof helper);
    for (;;) pause();
  }
  int helper = 0;
  ASSERT_EQ(read(pipe_ends[0], &helper, sizeof helper), static_cast<ssize_t>(sizeof helper));
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  auto gone = [helper] {  // reaped, or a zombie that nobody reaps
    std::ifstream file("/proc/" + std::to_string(helper) + "/stat");
    std::string pid, name, state;
    return !(file >> pid >> name >> state) || state == "Z" || state == "X";
  };
  for (int i = 0; i < 1000 && !gone(); ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_TRUE(gone());
  if (!gone()) kill(helper, SIGKILL);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

// Waiting costs no processor time.
TEST(VerifierPool, SleepsWhenIdle) {
  VerifierPool pool({.helpers = 2});
  One(pool, Of("echo"));
  const std::clock_t begin = std::clock();
  EXPECT_TRUE(pool.Poll(milliseconds(600)).empty());
  EXPECT_LT(std::clock() - begin, CLOCKS_PER_SEC / 10) << "processor time in a wait of 0.6 s";
}

TEST(VerifierPool, AProgramThatIsNotThereIsNamed) {
  try {
    VerifierPool pool({.helpers = 1, .program = "/no/such/program"});
    FAIL() << "a pool without helpers";
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("/no/such/program"), std::string::npos) << e.what();
  }
}

// A program that starts and ends at once: every request is told, none waits for ever.
TEST(VerifierPool, AProgramThatIsNoHelperCrashesEachRequest) {
  VerifierPool pool({.helpers = 2, .program = "/bin/true"});
  for (uint64_t id = 0; id < 4; ++id) pool.Submit(id, Of("echo"));
  auto replies = Collect(pool);
  ASSERT_EQ(replies.size(), 4u);
  for (auto& [id, reply] : replies) EXPECT_EQ(reply.outcome, Outcome::kCrashed);
}

TEST(VerifierWire, RefusesWhatIsCutOrTooLong) {
  RewardRequest request = Of("math", "text", "gold");
  std::string payload = EncodeRequest(request);
  for (size_t n = 0; n < payload.size(); ++n) {
    EXPECT_THROW(DecodeRequest(payload.substr(0, n)), DataError) << n;
  }
  EXPECT_THROW(DecodeRequest(payload + "x"), DataError);
  std::string frame = Frame(payload), out;
  for (size_t n = 0; n < frame.size(); ++n) {
    std::string part = frame.substr(0, n);
    EXPECT_FALSE(TakeFrame(&part, &out)) << n;
  }
  EXPECT_TRUE(TakeFrame(&frame, &out));
  EXPECT_EQ(out, payload);
  std::string huge = "\xff\xff\xff\xff";
  EXPECT_THROW(TakeFrame(&huge, &out), DataError);
}

}  // namespace
}  // namespace hone::rl

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "verify-helper") {
    return hone::rl::VerifyHelperLoop(hone::rl::TestScore);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
