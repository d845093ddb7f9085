// timeout: 300
// The batch script of `hone submit`: what it does when ranks end, die or are stopped, with
// stand-ins for SLURM's programs; and, where there is a SLURM, whole runs as jobs.
#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "launcher/slurm_job.h"
#include "tests/launcher/program.h"
#include "tests/read_json.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::launcher {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

void WriteProgram(const std::string& path, const std::string& text) {
  std::ofstream(path) << "#!/bin/bash\n" << text;
  chmod(path.c_str(), 0755);
}

// A folder with an `mpirun` that acts out a list of codes, a `srun` that waits, and a `scontrol`;
// each notes what it was called with.
class StandIns {
 public:
  explicit StandIns(const std::string& mpirun) {
    std::filesystem::create_directories(folder_ / "bin");
    std::filesystem::create_directories(folder_ / "run/logs");
    const std::string note = fmt::format("notes={}\necho \"$(basename $0) $*\" >> \"$notes\"\n",
                                         std::string(folder_ / "calls"));
    WriteProgram(folder_ / "bin/mpirun",
                 fmt::format("{}calls=$(grep -c ^mpirun \"$notes\")\n{}", note, mpirun));
    WriteProgram(folder_ / "bin/srun", note + "exec sleep 20\n");
    WriteProgram(folder_ / "bin/scontrol", note);
  }
  SlurmJob Job() const {
    SlurmJob job;
    job.name = "trial";
    job.program = "/opt/with space/hone";
    job.work_dir = folder_ / "";
    job.run_dir = folder_ / "run";
    job.config = folder_ / "run/submitted.yaml";
    return job;
  }
  // Runs the script as SLURM's batch step.
  std::unique_ptr<Program> Start(const SlurmJob& job) const {
    WriteProgram(folder_ / "script", SlurmScript(job));
    return std::make_unique<Program>(
        Words{"env", "PATH=" + std::string(folder_ / "bin") + ":" + std::getenv("PATH"),
              "SLURM_JOB_ID=7", "SLURMD_NODENAME=n1", "bash", folder_ / "script"},
        folder_ / "output");
  }
  std::string calls() const { return ReadFile(folder_ / "calls"); }

 private:
  runtime::TemporaryFolder folder_;
};

int Count(const std::string& text, const std::string& what) {
  int count = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) ++count;
  return count;
}

TEST(SlurmScript, StartsRanksAndWorkers) {
  StandIns slurm("while ! grep -q ^srun \"$notes\"; do sleep 0.05; done\nexit 0\n");
  SlurmJob job = slurm.Job();
  job.nodes = 2;
  job.ranks = 8;
  job.threads = 2;
  job.workers = 3;
  job.worker_options = {"--device", "cuda", "--tls-key", "a b.pem"};
  job.until = "base";
  job.sbatch = {"--partition=gpu"};
  const std::string script = SlurmScript(job);
  for (const char* line :
       {"#SBATCH --nodes=2\n", "#SBATCH --ntasks-per-node=4\n", "#SBATCH --cpus-per-task=3\n",
        "#SBATCH --requeue\n", "#SBATCH --signal=B:USR1@300\n", "#SBATCH --partition=gpu\n"}) {
    EXPECT_THAT(script, HasSubstr(line));
  }
  auto program = slurm.Start(job);
  EXPECT_EQ(program->Wait(std::chrono::seconds(30)), 0) << program->output();
  EXPECT_THAT(slurm.calls(), HasSubstr("-n 8 /opt/with space/hone train"));
  EXPECT_THAT(slurm.calls(), HasSubstr("--map-by ppr:4:node"));
  EXPECT_THAT(slurm.calls(), HasSubstr("--until base"));
  EXPECT_THAT(slurm.calls(), HasSubstr("srun --mpi=none --nodes=2 --ntasks=3"));
  EXPECT_THAT(slurm.calls(), HasSubstr("'--device' 'cuda' '--tls-key' 'a b.pem'"));
  EXPECT_THAT(slurm.calls(), Not(HasSubstr("scontrol")));
}

// `hone submit` itself, with a stand-in for sbatch: the script, and what the job's config becomes.
TEST(Submit, WorkersAreToldHowToReachRanksOnEveryNode) {
  runtime::TemporaryFolder folder;
  std::ofstream(folder / "run.yaml") << R"(run: {name: nodes}
tokenizer: byte
model: {family: llama, hidden_size: 16, intermediate_size: 20, num_hidden_layers: 1,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 128}
mesh: {dp: 2}
train: {device: cuda}
rollout: {device: cuda, workers: 3, threads: 2}
stages:
  - {name: rl, kind: grpo, steps: 1, lr: {peak: 0.001}, batch: {pack_tokens: 128},
     prompts: {family: chain}, reward: {accuracy: 1}, sampling: {max_new_tokens: 8}}
)";
  std::filesystem::create_directories(folder / "bin");
  WriteProgram(folder / "bin/sbatch", "echo 7\n");
  std::ofstream(folder / "a.pem") << "-----BEGIN CERTIFICATE-----\n";
  const std::string pem = folder / "a.pem";
  auto submit = [&](int nodes, const Words& settings, int code) {
    std::filesystem::remove_all(folder / "run");
    Words words = {"env", "PATH=" + std::string(folder / "bin") + ":" + std::getenv("PATH")};
    for (const std::string& word :
         HoneCommand(0, {"submit", folder / "run.yaml", "--nodes", std::to_string(nodes),
                         "--run-dir", folder / "run"})) {
      words.push_back(word);
    }
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    Program program(words, folder / "output");
    EXPECT_EQ(program.Wait(), code) << program.output();
    return ReadFile(folder / "run/submit.sbatch") + ReadFile(folder / "run/submitted.yaml") +
           program.output();
  };
  EXPECT_THAT(submit(1, {}, 0),
              AllOf(HasSubstr("'\\''--device'\\'' '\\''cuda'\\''"),
                    HasSubstr("srun --mpi=none --nodes=1 --ntasks=3"), Not(HasSubstr("0.0.0.0"))));
  EXPECT_THAT(submit(2, {}, 0), AllOf(HasSubstr("srun --mpi=none --nodes=2 --ntasks=3"),
                                      HasSubstr("listen: 0.0.0.0:0"), Not(HasSubstr("--tls"))));
  EXPECT_THAT(submit(2, {"rollout.listen=node7:5000"}, 2),
              AllOf(HasSubstr("node7:5000"), HasSubstr("set rollout.listen: 0.0.0.0:PORT")));
  EXPECT_THAT(
      submit(2,
             {"rollout.tls_certificate=" + pem, "rollout.tls_key=" + pem, "rollout.tls_ca=" + pem},
             0),
      AllOf(HasSubstr("--tls-certificate"), HasSubstr("--tls-key"), HasSubstr("--tls-ca"),
            HasSubstr(pem)));
}

TEST(SlurmScript, LearnersThatDiedAreStartedAgainAFewTimes) {
  StandIns once("[ $calls = 1 ] && exit 137; exit 0\n");
  auto program = once.Start(once.Job());
  EXPECT_EQ(program->Wait(std::chrono::seconds(30)), 0) << program->output();
  EXPECT_EQ(Count(once.calls(), "mpirun"), 2);
  EXPECT_THAT(program->output(), HasSubstr("ended with 137"));
  StandIns bad_config("exit 2\n");
  EXPECT_EQ(bad_config.Start(bad_config.Job())->Wait(std::chrono::seconds(30)), 2);
  EXPECT_EQ(Count(bad_config.calls(), "mpirun"), 1) << "there is nothing to try again";
}

constexpr char kStopsWhenAsked[] =
    "trap 'exit 75' USR1\nfor i in $(seq 200); do sleep 0.1 & wait $!; done\nexit 1\n";

void WaitForRanks(const StandIns& slurm) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (Count(slurm.calls(), "mpirun") == 0) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "no ranks were started";
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the stand-in sets its trap
}

TEST(SlurmScript, NearTheTimeLimitTheJobIsStoppedAndRequeued) {
  StandIns slurm(kStopsWhenAsked);
  auto program = slurm.Start(slurm.Job());
  WaitForRanks(slurm);
  program->Signal(SIGUSR1);
  EXPECT_EQ(program->Wait(std::chrono::seconds(30)), 75) << program->output();
  EXPECT_EQ(Count(slurm.calls(), "mpirun"), 1);
  EXPECT_THAT(slurm.calls(), HasSubstr("scontrol requeue 7"));
}

// The notice comes while a crash is waited out, before the learners could have heard of it.
TEST(SlurmScript, ANoticeBetweenTwoStartsIsNotLost) {
  StandIns slurm("[ $calls = 1 ] && exit 137\nexec sleep 20\n");
  auto program = slurm.Start(slurm.Job());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (program->output().find("ended with 137") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << program->output();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  program->Signal(SIGUSR1);
  EXPECT_EQ(program->Wait(std::chrono::seconds(15)), 137) << program->output();
  EXPECT_EQ(Count(slurm.calls(), "mpirun"), 1);
  EXPECT_THAT(slurm.calls(), HasSubstr("scontrol requeue 7"));
}

// The same notice ends learners that have no ear for it yet.
TEST(SlurmScript, ANoticeThatKillsTheLearnersRequeuesTheJob) {
  StandIns slurm("exec sleep 20\n");
  auto program = slurm.Start(slurm.Job());
  WaitForRanks(slurm);
  program->Signal(SIGUSR1);
  EXPECT_EQ(program->Wait(std::chrono::seconds(15)), 128 + SIGUSR1) << program->output();
  EXPECT_EQ(Count(slurm.calls(), "mpirun"), 1);
  EXPECT_THAT(slurm.calls(), HasSubstr("scontrol requeue 7"));
}

TEST(SlurmScript, WhatIsDoneOrCannotBeDoneIsNotRequeued) {
  for (int code : {0, 2}) {
    StandIns slurm(fmt::format("trap 'exit {}' USR1\nsleep 20 & wait $!\n", code));
    auto program = slurm.Start(slurm.Job());
    WaitForRanks(slurm);
    program->Signal(SIGUSR1);
    EXPECT_EQ(program->Wait(std::chrono::seconds(15)), code) << program->output();
    EXPECT_THAT(slurm.calls(), Not(HasSubstr("scontrol")));
  }
}

// A rank that meets the others, as it does before it trains, takes the notice for a stop.
TEST(SlurmScript, RanksHaveAnEarForTheNoticeBeforeTheyMeet) {
  runtime::TemporaryFolder folder;
  std::ofstream(folder / "run.yaml") << R"(run: {name: ranks}
tokenizer: byte
model: {family: llama, hidden_size: 16, intermediate_size: 20, num_hidden_layers: 1,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 64}
train: {deadline_seconds: 2}
mesh: {dp: 2}
stages:
  - {name: base, kind: pretrain, steps: 1, lr: {peak: 0.001}, batch: {packs: 2, pack_tokens: 64},
     data: {family: chain, text: answer}}
)";
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 4), 0);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  Program rank(Words{"env", fmt::format("HONE_MASTER=127.0.0.1:{}", ntohs(address.sin_port)),
                     "HONE_RANK=1", "HONE_SIZE=2", HoneProgram(), "train", folder / "run.yaml",
                     "--run-dir", folder / "run", "--tcp"},
               folder / "output");
  pollfd waiting{listener, POLLIN, 0};
  ASSERT_EQ(poll(&waiting, 1, 30'000), 1) << rank.output();
  rank.Signal(SIGUSR1);
  close(listener);  // nobody else comes
  EXPECT_EQ(rank.Wait(std::chrono::seconds(30)), 1) << rank.output();
  EXPECT_THAT(rank.output(), HasSubstr("hone: ["));  // why it could not meet them
}

TEST(SlurmScript, AStoppedJobIsNotRequeued) {
  StandIns slurm(kStopsWhenAsked);
  auto program = slurm.Start(slurm.Job());
  WaitForRanks(slurm);
  program->Signal(SIGTERM);
  EXPECT_EQ(program->Wait(std::chrono::seconds(30)), 75) << program->output();
  EXPECT_THAT(slurm.calls(), Not(HasSubstr("scontrol")));
}

// Jobs of a real SLURM with two idle nodes.
class SubmitTest : public testing::Test {
 protected:
  void SetUp() override {
    if (std::system("sinfo -h -t idle -o %D > /dev/null 2>&1") != 0) {
      GTEST_SKIP() << "there is no SLURM here (SLURM_CONF)";
    }
    std::ofstream(folder_ / "run.yaml") << R"(run: {name: job, seed: 3}
tokenizer: byte
model: {family: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 128}
mesh: {dp: 2}
stages:
  - {name: base, kind: pretrain, steps: 40, save_every: 10, lr: {peak: 0.001},
     batch: {packs: 2, pack_tokens: 128}, data: {family: chain, text: answer}}
)";
  }
  // The job's number.
  std::string Submit(const Words& more) {
    Words words = {
        "submit", folder_ / "run.yaml", "--run-dir", folder_ / "run", "--nodes", "2", "--time",
        "10"};
    words.insert(words.end(), more.begin(), more.end());
    Program program(HoneCommand(0, words), folder_ / "output");
    EXPECT_EQ(program.Wait(std::chrono::seconds(60)), 0) << program.output();
    const std::string said = program.output();
    EXPECT_THAT(said, HasSubstr("job "));
    return said.substr(said.find("job ") + 4, said.find(';') - said.find("job ") - 4);
  }
  std::string StageState() const {
    const std::string text = ReadFile(folder_ / "run/state.json");
    if (!nlohmann::json::accept(text)) return "";
    const auto stage = ParseJson(text)["stages"][0];
    return fmt::format("{} {}", stage["state"].get<std::string>(), stage["step"].get<int64_t>());
  }
  int64_t StageStep() const {
    const std::string state = StageState();
    return state.empty() ? -1 : std::stoll(state.substr(state.find(' ')));
  }
  void WaitFor(const std::string& state) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(100);
    while (StageState() != state) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << StageState() << "\n" << Log();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
  std::string Log() const {
    std::string all;
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / "run/logs")) {
      all += ReadFile(entry.path());
    }
    return all;
  }
  static void Cancel(const std::string& job) {
    ASSERT_EQ(std::system(("scancel " + job).c_str()), 0);
  }
  runtime::TemporaryFolder folder_;
};

TEST_F(SubmitTest, AJobTrainsOnTwoNodes) {
  for (const char* launcher : {"mpirun", "pmix", "tcp"}) {
    SCOPED_TRACE(launcher);
    const bool there =
        std::string(launcher) != "pmix" || std::system("srun --mpi=list 2>&1 | grep -q pmix") == 0;
    if (!there) continue;
    std::filesystem::remove_all(folder_ / "run");
    Submit({"--launcher", launcher});
    WaitFor("done 40");
  }
}

TEST_F(SubmitTest, WorkersOnBothNodesSample) {
  std::ofstream(folder_ / "run.yaml") << R"(run: {name: job, seed: 3}
tokenizer: byte
model: {family: llama, hidden_size: 16, intermediate_size: 20, num_hidden_layers: 2,
  num_attention_heads: 2, vocab_size: 263, max_position_embeddings: 64}
mesh: {pp: 2}
rollout: {workers: 2}
stages:
  - {name: rl, kind: grpo, steps: 2, lr: {peak: 0.001}, batch: {pack_tokens: 64},
     prompts: {family: chain}, prompts_per_rollout: 2, group_size: 2, reward: {accuracy: 1},
     max_unusable: 1.0, sampling: {max_new_tokens: 8}}
)";
  Submit({});
  WaitFor("done 2");
}

TEST_F(SubmitTest, AJobGoesOnAfterItsTimeLimit) {
  const std::string job = Submit({"--set", "stages.base.steps=4000"});
  WaitFor("running 10");
  ASSERT_EQ(std::system(("scancel --batch --signal=USR1 " + job).c_str()), 0);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(120);
  while (Log().find("goes on when it is its turn again") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << Log();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_THAT(Log(), HasSubstr("the same command goes on"));
  const int64_t stopped_at = StageStep();
  EXPECT_GE(stopped_at, 10);
  // SLURM lets a requeued job wait for two minutes, unless told otherwise once it waits.
  const std::string at_once = "[ \"$(squeue -h -j " + job + " -o %T)\" = PENDING ] && " +
                              "scontrol update JobId=" + job + " StartTime=now > /dev/null 2>&1";
  while (StageStep() <= stopped_at) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "it did not go on\n" << Log();
    [[maybe_unused]] const int waits = std::system(at_once.c_str());
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  Cancel(job);
}

}  // namespace
}  // namespace hone::launcher
